"""The words that rewards.py counts.

What both languages have (a, me, has, once) and what a formula may hold (x, y, sin) is in neither
list, except two words of our corpus: "no" counts as English there, "error" as Spanish.
"""

ENGLISH = """
yes no wait check right wrong stop guess again so the of and to in is it that for on with are
this be from or by not we you have which then there now let can if but what all will two first
next try need get number numbers sum answer think because therefore also maybe was were they his
her its our their would could should how when where do does did an at my your than more most
very just only make since thus hence gives find verify retry evaluate mistake however animals
colours fruits parts
"""
SPANISH = """
bien mal espera reviso correcto error paro digo otra vez entonces el la los las de del que en un
una unos unas por con para se su sus al lo como pero más este esta esto ese esa si sí porque hay
muy ahora también así luego número números suma respuesta tenemos pues cuando donde sobre ya
está fue qué cómo otro cada hasta desde todo todos nos primero probar verificar animales colores
frutas partes
"""
VOCABULARY = {"en": frozenset(ENGLISH.split()), "es": frozenset(SPANISH.split())}

# the list of the R1 paper, and the two words that open a check in the Spanish part of our corpus
REFLECTION_WORDS = "wait mistake however but retry error verify wrong evaluate check espera reviso"
REFLECTIONS = frozenset(REFLECTION_WORDS.split())
