"""Captions in other languages: each is parsed back to what it claims, by another lexicon."""

import re
from itertools import pairwise

import pytest

from saysee.data.scenes.captions import Caption, NounPhrase
from saysee.data.scenes.corpus import build_scenes
from saysee.data.scenes.grammar import LANGUAGES, say
from saysee.data.scenes.planning import plan
from saysee.data.scenes.speakers import ACCENTS, VARIANTS, Speaker, speaker_pools
from saysee.data.scenes.speech import synthesize
from saysee.errors import ConfigError

ATTRIBUTES = {
    "small": "size", "large": "size", "plain": "fill", "striped": "fill", "dotted": "fill",
    **dict.fromkeys(("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown"), "color"),
}  # fmt: skip
NOUNS = (
    "circle", "square", "triangle", "diamond", "star", "heart", "ring", "cross", "moon", "arrow", "flower", "house",
    "shape",
)  # fmt: skip
# Values and shapes in the order of the two lists above, each as a regular expression of all its forms.
LEXICON = {
    "de": (
        "klein\\w+ groß\\w+ einfarbig\\w+ gestreift\\w+ gepunktet\\w+ rot\\w+ orange gelb\\w+ grün\\w+ blau\\w+ lila "
        "rosa braun\\w+",
        "Kreis(?:en?)? Quadrat(?:en?)? Dreieck(?:en?)? Rauten? Stern(?:en?)? Herz(?:en)? Ring(?:en?)? Kreuz(?:en?)? "
        "Mond(?:en?)? Pfeil(?:en?)? Blumen? H(?:aus|äusern?) Figur(?:en)?",
        "zwei drei vier",
    ),
    "es": (
        "pequeñ[oa]s? grandes? lis[oa]s? de_rayas de_lunares roj[oa]s? naranja amarill[oa]s? verdes? azul(?:es)? "
        "morad[oa]s? rosa marr(?:ón|ones)",
        "círculos? cuadrados? triángulos? rombos? estrellas? coraz(?:ón|ones) anillos? cru(?:z|ces) lunas? flechas? "
        "flor(?:es)? casas? figuras?",
        "dos tres cuatro",
    ),
    "tr": (
        "küçük büyük düz çizgili benekli kırmızı turuncu sarı yeşil mavi mor pembe kahverengi",
        "daire(?:nin)? kare(?:nin)? üçgen(?:in)? eşkenar_dörtgen(?:in)? yıldız(?:ın)? kal(?:p|bin) halka(?:nın)? "
        "artı(?:nın)? ay(?:ın)? ok(?:un)? çiçe(?:k|ğin) ev(?:in)? şek(?:il|lin)",
        "iki üç dört",
    ),
}  # fmt: skip
# The words that decide; the first that is found in a sentence counts.
RELATIONS = {
    "de": {
        "links": "left of",
        "rechts": "right of",
        "über|oberhalb|darüber": "above",
        "unter|unterhalb|darunter": "below",
    },
    "es": {"izquierd[ao]": "left of", "derech[ao]": "right of", "encima": "above", "debajo": "below"},
    "tr": {"sol\\w*": "left of", "sağ\\w*": "right of", "üst\\w+|yukarısında": "above", "alt\\w+|aşağısında": "below"},
}
PLACES = {
    "de": {"linken": "left", "rechten": "right", "oben": "top", "unten": "bottom"},
    "es": {"izquierda": "left", "derecha": "right", "arriba": "top", "abajo": "bottom"},
    "tr": {"solda": "left", "sağda": "right", "yukarıda": "top", "aşağıda": "bottom"},
}
# What a sentence of a form has, and no sentence of a form below it has.
FORMS = {
    "de": {"counted": "Figuren, darunter", "with": r"\bmit\b", "halves": r"Seite|\boben|\bunten"},
    "es": {"counted": "entre ellas", "with": r"\bcon\b", "halves": r"arriba|abajo|a la (?:izquierda|derecha)(?! de)"},
    "tr": {"counted": "bunların arasında", "with": r"\bolan\b", "halves": r"\b(?:solda|sağda|yukarıda|aşağıda)\b"},
}


def parse(text, language):
    """Form, noun phrases as (values, number) from left to right, relation, and places, of a sentence."""
    values, nouns, numbers = (entry.split() for entry in LEXICON[language])
    known = {
        pattern.replace("_", " "): name for pattern, name in zip(values + nouns, [*ATTRIBUTES, *NOUNS], strict=True)
    }
    known |= {number: count for count, number in enumerate(numbers, 2)}
    word = re.compile("|".join(f"\\b(?:{pattern})(?!\\w)" for pattern in known))
    phrases, rest, last = [], [], 0
    for found in word.finditer(text):
        value = next(value for pattern, value in known.items() if re.fullmatch(pattern, found[0]))
        between = text[last : found.start()]
        article = re.fullmatch(" (?:bir )?", between)  # Turkish: between adjective and noun
        if not phrases or not article:
            phrases.append(({}, 1))
            rest.append(between)
        said, count = phrases[-1]
        name = ATTRIBUTES.get(value, "shape")
        assert name not in said or isinstance(value, int), text
        phrases[-1] = (said, value) if isinstance(value, int) else ({**said, name: value}, count)
        last = found.end()
    rest = " ".join([*rest, text[last:]])
    form = next((form for form, pattern in FORMS[language].items() if re.search(pattern, text)), None)
    relation = next((value for key, value in RELATIONS[language].items() if re.search(rf"\b(?:{key})\b", rest)), None)
    places = re.findall("|".join(PLACES[language]), rest)
    return form or ("beside" if relation else "listed"), phrases, relation, [PLACES[language][each] for each in places]


def claims(caption):
    """The same of a caption, with its phrases in their own order."""
    form = {"with_beside": "with", "in_half": "halves", "in_halves": "halves"}.get(caption.form, caption.form)
    form = "beside" if "beside" in form else form
    phrases = [(dict(each.description), len(each.objects)) for each in caption.phrases]
    phrases = [({"shape": "shape"} | values, count) for values, count in phrases]
    if caption.total is not None:
        phrases.insert(0, ({"shape": "shape"}, caption.total))
    return (
        form,
        phrases,
        *[where for _, where, _ in caption.relations or [(0, None, 0)]],
        [p for _, p in caption.places],
    )


@pytest.fixture(scope="module")
def scenes():
    return [planned for seed in range(8) for planned in plan(seed, {"train": 60, "val": 5, "test": 25})]


@pytest.mark.parametrize("language", ["de", "es", "tr"])
def test_each_caption_parses_back_to_what_it_claims(scenes, language):
    forms = set()
    for planned in scenes:
        for caption in planned.captions:
            text = say(caption, language).text
            form, phrases, relation, places = claims(caption)
            if language == "tr" and caption.relations and caption.form != "the_beside_the":
                phrases = phrases[::-1]  # what a thing is beside is before it
            found = parse(text, language)
            assert found[:2] == (form, phrases), text
            if form in ("beside", "with"):
                assert found[2] == relation, text
            if form == "halves":
                assert found[3] == places, text
            forms.add((caption.form, caption.opening, caption.wording, relation, *places))
        assert len({say(caption, language).text for caption in planned.captions}) == 5
    assert {form for form, *_ in forms} == {
        "beside", "there_is_beside", "the_beside_the", "with_beside", "in_half", "in_halves", "listed", "counted"
    }  # fmt: skip
    assert len(forms) > 80, "openings, wordings, relations and places"


def phrase(count=1, **values):
    return NounPhrase(tuple(values.items()), tuple(range(count)))


STAR, HOUSE = phrase(size="small", color="red", shape="star"), phrase(fill="striped", color="green", shape="house")
HEARTS, FLOWER = phrase(2, size="large", fill="dotted", shape="heart"), phrase(color="brown", shape="flower")


@pytest.mark.parametrize(
    ("caption", "german", "spanish", "turkish"),
    [
        (
            Caption("the_beside_the", (STAR, HOUSE), ((0, "left of", 1),)),
            "der kleine rote Stern ist links vom gestreiften grünen Haus",
            "la estrella roja pequeña está a la izquierda de la casa verde de rayas",
            "küçük kırmızı yıldız, çizgili yeşil evin solunda duruyor",
        ),
        (
            Caption("the_beside_the", (HEARTS, FLOWER), ((0, "above", 1),), wording=1),
            "die zwei großen gepunkteten Herzen sind oberhalb von der braunen Blume",
            "los dos corazones grandes de lunares están por encima de la flor marrón",
            "iki büyük benekli kalp, kahverengi çiçeğin yukarısında duruyor",
        ),
        (
            Caption("there_is_beside", (STAR, HEARTS), ((0, "below", 1),), opening=1),
            "ich sehe einen kleinen roten Stern unter zwei großen gepunkteten Herzen",
            "veo una estrella roja pequeña debajo de dos corazones grandes de lunares",
            "iki büyük benekli kalbin altında küçük kırmızı bir yıldız görüyorum",
        ),
        (
            Caption("with_beside", (HEARTS, HOUSE), ((1, "right of", 0),), opening=2),
            "hier sind zwei große gepunktete Herzen mit einem gestreiften grünen Haus rechts davon",
            "aquí hay dos corazones grandes de lunares con una casa verde de rayas a su derecha",
            "işte sağlarında çizgili yeşil bir ev olan iki büyük benekli kalp",
        ),
        (
            Caption("in_halves", (FLOWER, STAR), places=((0, "left"), (1, "bottom")), opening=1),
            "ich sehe eine braune Blume auf der linken Seite und einen kleinen roten Stern unten",
            "veo una flor marrón a la izquierda y una estrella roja pequeña abajo",
            "solda kahverengi bir çiçek ve aşağıda küçük kırmızı bir yıldız görüyorum",
        ),
        (
            Caption("listed", (HOUSE, STAR, HEARTS), opening=0),
            "es gibt ein gestreiftes grünes Haus, einen kleinen roten Stern und zwei große gepunktete Herzen",
            "hay una casa verde de rayas, una estrella roja pequeña y dos corazones grandes de lunares",
            "çizgili yeşil bir ev, küçük kırmızı bir yıldız ve iki büyük benekli kalp var",
        ),
        (
            Caption("counted", (FLOWER, HOUSE), total=3),
            "drei Figuren, darunter eine braune Blume und ein gestreiftes grünes Haus",
            "tres figuras, entre ellas una flor marrón y una casa verde de rayas",
            "üç şekil var, bunların arasında kahverengi bir çiçek ve çizgili yeşil bir ev bulunuyor",
        ),
    ],
)
def test_gender_case_number_and_order_are_those_of_the_language(caption, german, spanish, turkish):
    assert [say(caption, language).text for language in ("de", "es", "tr")] == [german, spanish, turkish]


def test_words_describe_the_objects_of_their_phrase_also_where_words_are_joined():
    caption = Caption(
        "the_beside_the", (NounPhrase((("shape", "star"),), (0,)), NounPhrase((("shape", "circle"),), (1,)))
    )
    caption = Caption(caption.form, caption.phrases, ((0, "below", 1),))
    assert say(caption, "es").words == (
        ("la", ()), ("estrella", (0,)), ("está", ()), ("debajo", ()), ("del", ()), ("círculo", (1,))
    )  # fmt: skip


def test_an_unknown_language_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="'fr'"):
        say(Caption("listed", (STAR, HOUSE)), "fr")
    for languages in (["en", "fr"], ["de", "de"], [""]):
        with pytest.raises(ConfigError, match="languages"):
            build_scenes(tmp_path / "scenes", images=8, languages=languages)
    assert not (tmp_path / "scenes").exists()


def test_pools_of_all_languages_share_no_voice_between_splits():
    assert set(ACCENTS) == set(LANGUAGES)
    for language in LANGUAGES:
        pools = speaker_pools(language)
        assert sum(map(len, pools.values())) > 0.97 * 8 * len(VARIANTS)
        voices = [{speaker.voice for speaker in pool} for pool in pools.values()]
        assert not voices[0] & voices[1]
        assert not (voices[0] | voices[1]) & voices[2]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("de", "ein größeres grünes Häuschen über zwei Sternen"),
        ("es", "un corazón pequeño encima de la flor marrón"),
        ("tr", "küçük çizgili yıldızın sağında büyük bir çiçek"),
    ],
)
def test_words_of_other_alphabets_have_their_own_times(language, text):
    pytest.importorskip("espeakng_loader", reason="needs the 'scenes' extra")
    said = synthesize(text, Speaker(language, "f3"))
    times = [(word.start, word.end) for word in said.words]
    assert [word.name for word in said.words] == text.split()
    assert all(0 <= start < end <= said.seconds for start, end in times)
    assert all(end <= start + 1e-9 for (_, end), (start, _) in pairwise(times))


def test_english_of_a_corpus_in_two_languages_is_that_of_english_alone(tmp_path):
    pytest.importorskip("espeakng_loader", reason="needs the 'scenes' extra")
    from saysee.data.manifest import Manifest

    counts = {"images": 4, "val_images": 1, "test_images": 1, "image_size": 64, "workers": 1}
    alone = Manifest.read(build_scenes(tmp_path / "en", **counts))
    both = Manifest.read(build_scenes(tmp_path / "both", languages=["en", "de"], **counts))
    english, german = ([row for row in both if row.language == language] for language in ("en", "de"))
    assert english == list(alone)
    assert all(alone.clip_path(row).read_bytes() == both.clip_path(row).read_bytes() for row in alone)
    assert [row.image_id for row in german] == [row.image_id for row in english]
    assert {row.extra["accent"] for row in german} == {"de"}
    assert [[word["objects"] for word in row.extra["words"] if word["objects"]][:1] for row in german]
    with pytest.raises(Exception, match="en,de"):
        build_scenes(tmp_path / "both", **counts)
