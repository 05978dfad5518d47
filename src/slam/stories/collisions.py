"""Candidate non-words that must not be used: they are words, names, or sound like a word.

In: nothing.  Out: `COLLISIONS`.  The list was made by checking every candidate of every held-out
word against a pronouncing dictionary and a frequency list (as spelled) and against the sounds that
eSpeak gives the 20,000 most frequent words (as spoken).
"""

from __future__ import annotations

from typing import Final

_LISTED: Final = """
ambra archard archy attired bailor band bang bangle bank bared barn bass beck bick bind bing blend
blew blocked bock bonded boney bong boodles boot breased brew brightened buckle bundle bungle bunny
cackle canty cappy carden carder cared caved cell cend cerious cessle cestle changed chanted checked
chers chessed chested chew chicked chipped cited clapped clew clierd cliver cockles conely coney
cong cook copp coppers copple cord cordes corse cost crept crew criner crisper cropped crowly curnle
dack dapp dated dept ding dint docked docket docter dood doodles dragged dreher drew droopy drover
epson factery failor faled fang fantle farmars farmur feller fent fetter filed filler fired firmer
firs flew flopped fogge foney fong foor foot forse frend frew galt gardes gardin gared gerd ginter
gipp glew gook gorden grew gundle habbit habbits hack hacked hally hamb handle handles haney hanged
hangen hanke harden harmer harne harry hashe hast hatty havey heck hell heney heppe herse hewey
hiced hicke hined hiney hintes hippy hirs hirse hoctor holdes holey holly holow hong hood hook hoor
hoot hoppe hopped hoppes hoppy horde hordes horror howey huney hunny hunted hurry hurse jangle
jengle jingle jong jostes jostle kamp kapt kardes kast kelp kent kepp kert kick kild kined knay knee
kney know knoy koor kump kunt kurious lack lacked land landed langen lared larmer legg lent lick
lined lint lizz lockes locket lockets loded lofte loney look loon loos loot lorey losses lowely
lunny lutious mallet mated merker molle mong monk moor most munny mustle nagged nailles napp neadles
nealy nell nirvous noizy nooly noos nowzy osland oslund packed packer padded paddle palate panted
pantle pars paved peenuts pent pick pined plannor plew plopped plowed pock pocket pockets pompass
ponde poney ponte pontes poodles pool poon poor porde ported poss poste postes postle prept prew
priest pripared pronged puddle quiver rabbis racket rackets rampy rapped raved reatched reck renken
ribbit rickers rickets rockel rockers rold rong ronk rood rook rubbers rummy sack sagged sailars
saizar samb sand sanders santy sapp sapped sars sass sated seck sedd self sell send seng sent senty
sepp sept sers servour shankel shelf sheng shew shield shiver sirs siss sited slammer slant slapt
slew slidd slipt sliver sloss sock socket sockets sold solves sommor sonny soonor soos sopp soppy
sord sowlor stent stew stiemb stocked stracke strande strappe strapte suck suckle sump sund sung
supp swapt swopt tack tankes teak tear tened teng tered tezed thew thickly thursty tick tipp tock
toil toom toon toor toot toted tractar tracter trend trent trew tumble tuned tunny ulmer waced wack
wadded waid wair wall wand wang want wantes wardan warden warder warmer warped waur wead weal wean
weat weck welded welles wend weng wepped wept werd west wezz whebber whew whirred whysper wickes
wiled will wimp wined wint wird wired wist wodd woll wond wong wont wonte wook wool woom woor worse
wulf wurd
"""
COLLISIONS: Final = frozenset(_LISTED.split())
