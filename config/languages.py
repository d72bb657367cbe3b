"""Words for languages, for prompts: `ko`, `ko_KR` and `kor_Hang` are Korean."""

from __future__ import annotations

# ISO 639-1, ISO 639-3, name.
_TABLE = """
af afr Afrikaans|am amh Amharic|ar arb Arabic|az azj Azerbaijani|be bel Belarusian|bg bul Bulgarian|bn ben Bengali
bs bos Bosnian|ca cat Catalan|cs ces Czech|cy cym Welsh|da dan Danish|de deu German|el ell Greek|en eng English
es spa Spanish|et est Estonian|eu eus Basque|fa pes Persian|fi fin Finnish|fr fra French|ga gle Irish|gl glg Galician
gu guj Gujarati|ha hau Hausa|he heb Hebrew|hi hin Hindi|hr hrv Croatian|hu hun Hungarian|hy hye Armenian
id ind Indonesian|ig ibo Igbo|is isl Icelandic|it ita Italian|ja jpn Japanese|jv jav Javanese|ka kat Georgian
kk kaz Kazakh|km khm Khmer|kn kan Kannada|ko kor Korean|ky kir Kyrgyz|lo lao Lao|lt lit Lithuanian|lv lvs Latvian
mk mkd Macedonian|ml mal Malayalam|mn khk Mongolian|mr mar Marathi|ms zsm Malay|my mya Burmese|ne npi Nepali
nl nld Dutch|no nob Norwegian|pa pan Punjabi|pl pol Polish|ps pbt Pashto|pt por Portuguese|ro ron Romanian
ru rus Russian|si sin Sinhala|sk slk Slovak|sl slv Slovenian|so som Somali|sq als Albanian|sr srp Serbian
sv swe Swedish|sw swh Swahili|ta tam Tamil|te tel Telugu|tg tgk Tajik|th tha Thai|tk tuk Turkmen|tl tgl Tagalog
tr tur Turkish|tt tat Tatar|uk ukr Ukrainian|ur urd Urdu|uz uzn Uzbek|vi vie Vietnamese|xh xho Xhosa|yo yor Yoruba
zh zho Chinese|zu zul Zulu
"""
_ROWS = [row.split() for row in _TABLE.strip().replace("\n", "|").split("|")]
NAMES = {code: name for *codes, name in _ROWS for code in codes} | {"nb": "Norwegian", "ara": "Arabic", "msa": "Malay"}


def language_name(code: object) -> str:
    """The English name of the language of a code: ISO 639-1 or 639-3, with or without a country or a script.

    Raises `ValueError` for one that is not known here.
    """
    text = str(code).strip()
    language = text.lower().replace("-", "_").partition("_")[0]
    if language not in NAMES:
        raise ValueError(f"language_name: {text[:20]!r} is no code that it knows, such as ko, ko_KR or kor_Hang")
    return NAMES[language]
