"""Candidate non-words that must not be used: they are words, names, or sound like a word.

In: nothing.  Out: `COLLISIONS`.  The list was made by checking every candidate of every held-out
word against a pronouncing dictionary and a frequency list (as spelled) and against the sounds that
eSpeak gives the 20,000 most frequent words (as spoken).
"""

from __future__ import annotations

from typing import Final

_LISTED: Final = """
ackly admined admited alder allots almaled almon ambra ammons angri ankers archard archy armens
armon asters babbits bades baill baitt baled balley bamm banded bane banes bangle barrier
barries barrows bated battan batter baxes beaff beall beapp beass bebber beck bedes beers
beevers beges bend benes bern bert beses betes better bettor bice bicker biff biges bilder billy
bined bines bing bird bired bires birly bixes blan blanked blans blanton bleck blend blew
blickly blimp bloke bloss blowly blowns bock bodes boldes boline bone bones boney bong bonoy
boodles boop boos boost boozed borded bore bores bornes borrees borses bort bosses bost boule
boupe bouse bovely brack bracked brake braked brall brands branked brans brants brase brashs
brede brents brests brew brickers brickly brightened brings brit brode bronts broshs brossed
brosts browly browns buffets buffins build bungle bunnies bunny buntes bupp bust butes cackle
cackles calan caleed cales cane canted cantle cantles cappy carmers carriss case castles cate
cated catle caved cavered ceall cedd cell cengle cerious cert cevered cevored chaff champins
chand changes chans chapped chared chars chassed chats cheared checked cheered cheeted chert
chest chew chickly chilley chin chipped chit chock chocked chole chowly cilly cingle cire ciss
cited clack clan clang clanked clared class clell clew click clickly clierd clintly cloke clomp
clothy clowly cluck clump codd coke cokes colered cond cone conely coney cong cook cool cordes
core cores corter cose cosey cosse cour coxes crack crains crall crauns crayn crayns creaks
crean creans crear creared crears creas creased creats creeded creel creem creer creers crew
crickets crickly crider crock croes crooms croomy croon croons croors crowly cully curied curry
cutter dack dake dancy danny dappers dazzles deavers decter dewed dide dike dillows dired
dockens docket dockets doke donely doodles dotey doun dovered draned drans dreger droge droke
dromer dross drosted drover drowns druges ductes edmared edmoned fable fair fais fake falt fane
fangle fanted fare fared fate fated faved fear feas feed fend feng ferries fers fethers fewed
ficker fike fill filly fined fired firmers firmes fite fited fived fleased flew flin flock
flopped flowly flowns foges foisy foleded fonely fongers font fool foor foot ford forde former
forse foshes fran fraps freaded freared freers freeted frend freund frew frickly frock galley
gammed gamped gane ganed gare gased gill gined ginter gited gived glared gleamy gleavy glew
glowly glowt goldes gond goney gook goor gorden gores gote goune gove grailed grained grall
gralled gran grans grant graped greared greased greated greeded greened greered grew grin grit
groened grone groomy grooted grooved growly grown growns guffins gunny habbits hable hackes
hacky hagge hale haley halled halted hamped hample hanay handes handle handles handy hane hanged
hanges happed happes harby harded hared harey harmer harmers harned harry harte hashed hate
hated haulages haved hawey heck hecked heckes hegey helfed hendes heney henke heppy herded
herdes herse herses herte herted hess hewed hice hilleys hinded hindes hine hiney hinly hippy
hire hired hirey hirly hirse hirsty hite hived hock hockes hockly hoctor hoffed hoke holey holl
holles holow holtes hone honely honged honny hook hoot hope hoppy hore hose hosey hosse hostes
hotes hour houre house huffins hully hunded huney hunny huppy hutter impend ipsen jack jacked
jake jane jangle jarred jase jemma jengle jerries jewed jingle jole jood joon jous jouze juke
jure kalp kang kapp kappy kart kase kased kate keck kemp kent kerries kewed kild killy kint
kired knag knat knay knee knel knet kney knin knoe knot know knoy knue komp kong kosted kotton
kovared kovened kuck kurd lable laced ladded lade lage laked laled lall lanaly landed lane
lanely lanted laped lapp lappy lare lared larmers larrey lase lased lashed lated laved leaver
lebed leke lend lene lenely leppy lere lern lest leted leve leved lewed lice lide lile lime limp
lined linely linly lire lirenes lirly lise lited lively loches locken locket lode loged logg
lone loned lones loney look loot lope lorde lore lored loried lose lott lotted lottess lout
loxes luke lumber lure lute lutter mace madel maine maise make male malle malley mane maned
mangles manters marden marmer marmers marmon masal mase masted mate mave mayse mease meater
medar medils meeke meese meld mene ment menty mere mewed midal miked milly mine mined minly
minter mione mire mired mirs mised mite mobil modal modals moddern model moiry moise moke mokes
mondes monely mong monk monkes mooce mook moone moor moore moose mope more morn morse morsed
morses morted mose mottern movered mowre muckly muise munny muse muze nace nacked naify nailles
naily naned napped nappy narsed neadles neagles neasy neety newed nired nirvous noesy noiry nold
nolde noldes noley noony noosy norse oliphants opsed osland pack pade paffed pake palate pane
panged pangles pant panted pantes pantle papp parate parates parmer parmers parry pate pealer
pearet pedal peenuts pegg pell pellas pellow pellows perries petal pewed pilley pinted pirple
plaked plan plans plas plass playsed pleaded pleated pless plew plewed plittly plock plocked
plopped plowed plowly plueed pock pocked pockes pockets poges poisy poke polleys polloes pomay
pondes pones poney pong pontes poodles poon poor pope popey possed postes poul poule pour
pranked prans prept prew prindly pripared prittly prowly puffins putter quackly quan quaned
quant quashly quast quicker quiver rack racket rackets rade randed randle rane raned rape rapty
rase rate ratle raze reatched reavers reckers reddies rella rene rest rewed ribbit ribbits
rickens rickets ride ring ripe ritten rode rogg role roley rolf ronely roney ronges rood rool
ropered rore rors roshes roule rovered roxes rubbel rule rundle ruppels rute saced sack sacked
sacky saddle sailyr sake sallee sallers sally salved samb sample sand sanded sanky sanly sanna
santed sapp sappy sare sarly sass sate satly satt saylors scabed scaded scamed scaned scaped
sceced scened scired scited scored sealers seanor season seaver seavers sebbies seck secked
secly sect sell selly send sendy seng senged senly senny sent sepp serry sesly setly sevly
shacked shagg shamp shan shand shaned shapped sheaned sheck sheered sheng shepp shew shickly
shiepp shiner shir shiver shock shocked shode shone shope showly shown sift sigly signy siled
sinced sind sinly sinny siply sired sirly siss sitly skans skared skew skihed skowly skowt slack
slant slapp slapt slayly sleely slemp slew slewly slick slickly sliders sling sloely slopp slown
smell smick smull snacked snaged snared snowly sock socket sockets sodly soeed soke sokly sold
solde soles solly soltes solute sones songed songes sonny sood sook soonor soot sopp sors sort
soses sosly sotes sotly soule sowed sowlor soxes spader spaders spars spated spazed speased spew
spicer spil spit staffy stally stals stamp stan staned stans stared steck steened stell stemmy
stepha stept stew stewed stickly sticky stilly stinky stiver stock stowed stowly strande strappe
strapte streche stresse strucke sturmy suck suckle sueed sung sungy suply surma suttel sutter
swapt swat swats swatt swel swets swick swins swips swirs swor swors swot tack taik tait take
tale talle tally tamed taned tanked tappen tared tarry tate tated tayk teal tean teas teel tell
tened tered terrain tesed tewed that thew thickly thinked thode thorped tice tick tiged tiled
tille tilly tire tised tite tited toff toft toled tone toned toney tool toor toot topeed tore
tored toted tour track tran tranged tranted treased treeted trew tris trone trowly tuckly tucky
tuded tured tuted upsed vest vewed viged villey vincey vintes vong vonges vote wackes wadd waded
waik wail wain wais waked wald waled walles walley walted wamm wand wanded waned wanges wardan
warden ware wared warmers wased wass wassed wate wated wayl wead weakend weald wean weant wear
weat weaver webry weded wees weged welles wemped wender weng wenk wented wentes wenty wered wers
wert west wested weted wett whack whan what wheated whept whew whider whis whittey wick wide
wiff wiked will willow willows willy windes wined winted wintes wired wirtes wisly wist wited
wolded woll wond wong wonkes wonted wool woor woos wore wored worse woshed woshes wove woved
wulf yack yaned yappy zally zancas zarry zewed zinky
"""
COLLISIONS: Final = frozenset(_LISTED.split())
