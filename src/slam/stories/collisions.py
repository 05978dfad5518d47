"""Candidate non-words that must not be used: they are words, names, or sound like a word.

In: nothing.  Out: `COLLISIONS`.  The list was made by checking every candidate of every held-out
word against a pronouncing dictionary and a frequency list (as spelled) and against the sounds that
eSpeak gives the 20,000 most frequent words (as spoken).
"""

from __future__ import annotations

from typing import Final

_LISTED: Final = """
ambra archard archerd archy aspired attired baikor bailor band bang bangle bank barn bated beck bend
bent bess bick bing blend blew blocked bloke blone bock bonded boney bong boodles boot brade brame
breased brew brine brode brume buckle bundle bungle bunny cackles cammon canty cappy carded carden
cared castles caved cell cend cerious cestle chanted checked cheng chers chessed chested chew
chipped choke chore chose cited clapped clew clierd cliver cloke cockle cockles conely coney cong
cook copp cord cordes corse cosse cost created crept crew crowly dack dapp dated dept ding dint
dippor docked docker docket docter dood doodles dragged drew droke drove drover elephent factery
failor fang fantle farmor fated fent filler fired firmer firs flew fogge foney fong forse frew galt
ganed garded gated gerd ginter gipp glew goor gorden grew groovy gundle habbit habbits hack hacked
hamb handle handles haney hanged hangen harden harker harmen harne harry hased hashes hast haste
hated heck hell heney henke herse hewey hiced hicke hilly hiney hinges hintes hippe hippy hirde
hired hirry hirs hirse hoctor holdes holey holly hong hood hoog hook hoor hoos hoot hoppe hopped
hoppes hoppy hordes horror hotty hovey howey huddy hunny hunted hurry jangle jengle jingle jong
jostes jostle kamp kant kapp kapt kard kelp kent kert kild knay knee kney know knoy kolp kord kump
kunt kurious lack lacked land landed lared larmer legg leked lent lick lined lint lizz locker lockes
locket lockets loded lofte loney loon loot lorey losses lowely lunny lutious marden marker mated
merkel mired molle mong monk moon morken most munny mustle nagged nailor napp neadles nealy nell
nervion nirvous noizy nood nooly nowzy osland packed packer padded paddle palate panted pantle pared
pars paved peenuts pell pent pick plannor plew plopped plowed pock pocket pockets pompass ponde
poney ponte pontes poodles poolles poon porde ported portle poss poste postes postle prept prew
priest pripared prone pronged puddle quiver racket rackets rampy rapped raved reatched reck ribben
ribbit rickers rickets rockers rold rollin rong ronk rood rook rummy sack sailers sand sant santy
sapp sapped sars sass sated seaver sebby seck sedd self sell send seng sent sepp sept sers servour
sheng shew shield shiver shore simper sind siss sited slamb slapt slew slidd slipt sloss smeld smelt
snoke sock socket sockets sold solves sommor sonny soonor soor soot sopp sowlor stent stew stiemb
stiver stoory stracke strande strappe streste suck suckle sund sung swapp swapt swopt taced tack
tais teak tean tear teat teer teng tered thew thickly thursty tick tiled tipp tock toled toned tong
tool toom toon toor town tracter trent trew trone tumble tunny uppes waced wack waded wafted wain
wais wall waned wang want wantes warden warder warmer wated waur wead weal wean wear weat weck weld
welded wend weng wept west wezz whept whew whysper wiled will wimp winded windes wined wint winton
wipp wird wired wist wodd woll wond wong wont wonte wonted wontes wook wool woor woos wored worse
wulf wurd
"""
COLLISIONS: Final = frozenset(_LISTED.split())
