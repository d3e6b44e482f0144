"""Words: what the titles and descriptions of synthetic items are made of, by theme."""

from __future__ import annotations

THEMES: dict[str, str] = {
    "ocean": "ocean sailor harbour tide reef whale island anchor storm lighthouse voyage captain",
    "mountain": "mountain summit glacier climber valley ridge avalanche cabin trail eagle rope cliff",
    "space": "space rocket planet orbit galaxy astronaut comet satellite moon alien starship nebula",
    "kitchen": "kitchen recipe chef spice bread oven soup dessert harvest feast butter tasting",
    "crime": "crime detective murder clue suspect alibi gangster robbery trial witness prison police",
    "romance": "romance wedding kiss letter heart lover bride summer promise passion couple dance",
    "horror": "horror ghost haunted vampire nightmare cemetery curse scream demon shadow blood witch",
    "comedy": "comedy joke prank laughter clown party awkward neighbour misunderstanding silly farce sketch",
    "war": "war soldier battle trench general army invasion tank bomber siege veteran resistance",
    "western": "western cowboy sheriff saloon ranch outlaw desert horse duel frontier cattle canyon",
    "music": "music guitar melody orchestra singer concert jazz piano rhythm album stage drummer",
    "sport": "sport football champion coach stadium marathon boxing goal racing athlete league medal",
    "children": "children puppy toy fairy playground teddy rainbow kitten storybook lullaby balloon cartoon",
    "fantasy": "fantasy dragon wizard sword kingdom quest elf enchanted prophecy throne magic dwarf",
    "history": "history empire queen castle revolution medieval emperor archive dynasty pharaoh treaty ruins",
    "science": "science laboratory physics chemistry experiment theory molecule microscope genius equation atom fossil",
    "nature": "nature forest river wildlife meadow butterfly lion jungle flower ecosystem bird wolf",
    "travel": "travel passport airport backpack hotel journey map train border sunset market postcard",
    "business": "business startup investor office banker merger salary profit manager contract stock career",
    "garden": "garden rose seed tomato greenhouse soil blossom compost orchard herb lawn beehive",
    "technology": "technology robot hacker software computer network circuit drone algorithm screen android battery",
    "fashion": "fashion dress designer runway silk jewellery model boutique shoes style perfume fabric",
    "health": "health yoga doctor hospital nurse medicine fitness sleep therapy surgery diet recovery",
    "politics": "politics election president senate campaign scandal debate minister parliament diplomat vote law",
    "winter": "winter snow skating icicle sledge frost fireplace scarf blizzard mitten skiing january",
    "school": "school teacher classroom exam pupil homework blackboard university diploma lesson library grammar",
    "art": "art painter canvas gallery sculpture museum portrait brush mosaic fresco exhibition pigment",
    "circus": "circus acrobat juggler tightrope ringmaster trapeze magician tent carnival parade elephant stunt",
    "railway": "railway locomotive platform tunnel conductor carriage timetable steam signal viaduct freight depot",
    "aviation": "aviation pilot cockpit glider runway propeller hangar jet helicopter parachute wingman altitude",
    "cars": "cars engine mechanic garage highway gearbox rally convertible tyre gasoline pickup overtaking",
    "insects": "insects beetle ant spider dragonfly cricket mosquito larva wasp moth termite cocoon",
    "weather": "weather thunder hurricane forecast rainbow drizzle tornado humidity barometer cyclone lightning hail",
    "chess": "chess bishop checkmate pawn grandmaster gambit knight opening endgame rook stalemate tournament",
    "mythology": "mythology zeus titan oracle olympus labyrinth minotaur muse centaur valkyrie odin phoenix",
    "theatre": "theatre actor curtain rehearsal playwright tragedy costume audience monologue applause puppet backdrop",
    "pirates": "pirates treasure plunder galleon cutlass parrot buccaneer doubloon mutiny schooner lagoon smuggler",
    "coffee": "coffee espresso barista roaster cappuccino mug latte brewing aroma teapot cocoa biscuit",
    "architecture": "architecture skyscraper arch cathedral blueprint column dome facade mortar balcony tower concrete",
    "photography": "photography camera lens tripod shutter exposure negative darkroom flash snapshot album focus",
}
"""Theme -> 12 words; the first names the theme."""

_COMMON = (
    "little great last secret lost golden silent broken hidden new old first long short bright dark "
    "story day night life world time people city house road friend family year moment place dream way return"
)
COMMON = _COMMON.split()
"""Words that say nothing of a theme."""

_SYLLABLE_TEXT = "ba be bo da de do ka ke ko la le lo ma me mo na ne no ra re ro sa se so ta te to va ve vo za zo"
_SYLLABLES = _SYLLABLE_TEXT.split()


def theme(number: int) -> tuple[str, list[str]]:
    """Return the name and the words of a theme; beyond the 40 English ones words are made of syllables.

    Example:
        >>> theme(0)[0], theme(40)[0] == theme(40)[1][0]
        ('ocean', True)
    """
    names = list(THEMES)
    if number < len(names):
        return names[number], THEMES[names[number]].split()
    base = len(_SYLLABLES)
    codes = [(number - len(names)) * 12 + position + base**2 for position in range(12)]
    words = [_SYLLABLES[c // base**2 % base] + _SYLLABLES[c // base % base] + _SYLLABLES[c % base] for c in codes]
    return words[0], words
