"""Units of measurement: the dimension of each and its size in the dimension's first unit."""

from __future__ import annotations

from fractions import Fraction

_TABLE = {
    "length": """
        mm=1/1000 cm=1/100 dm=1/10 m=1 km=1000 millimeter=1/1000 centimeter=1/100 meter=1 kilometer=1000
        millimetre=1/1000 centimetre=1/100 metre=1 kilometre=1000 in=127/5000 inch=127/5000 inche=127/5000
        ft=381/1250 foot=381/1250 feet=381/1250 yd=1143/1250 yard=1143/1250 mi=201168/125 mile=201168/125
        毫米=1/1000 厘米=1/100 分米=1/10 米=1 千米=1000 公里=1000""",
    "speed": """
        m/s=1 km/h=5/18 kmh=5/18 kph=5/18 mph=1397/3125 米/秒=1 千米/小时=5/18 千米/时=5/18 公里/小时=5/18 米/分=1/60
        米/分钟=1/60 mile/hour=1397/3125 mi/h=1397/3125 kilometer/hour=5/18 km/hour=5/18 km/hr=5/18 meter/second=1
        foot/second=381/1250 feet/second=381/1250 ft/s=381/1250 ft/sec=381/1250 inch/second=127/5000""",
    "frequency": "hz=1 khz=1000 mhz=1000000 ghz=1000000000 hertz=1",
    "energy": "joule=1 kj=1000 kilojoule=1000",
    "mass": """
        mg=1/1000 g=1 kg=1000 gram=1 kilogram=1000 milligram=1/1000 ton=1000000 tonne=1000000 t=1000000
        克=1 千克=1000 公斤=1000 吨=1000000""",
    "mass in ounces": "oz=1 ounce=1 lb=16 pound=16",
    "time": """
        ms=1/1000 s=1 sec=1 second=1 min=60 minute=60 h=3600 hr=3600 hour=3600 day=86400 week=604800
        小時=3600 秒=1 分钟=60 小时=3600 时=3600 天=86400 日=86400 周=604800""",
    "time in months": "month=1 year=12 月=1 个月=1 年=12",
    "volume": "ml=1/1000 milliliter=1/1000 l=1 liter=1 litre=1 毫升=1/1000 升=1",
    "money": "dollar=1 usd=1 buck=1 cent=1/100 penny=1/100",
    "money in yuan": "元=1 角=1/10 yuan=1 万元=10000",
    "angle": "degree=1",
}


def _parsed() -> dict[str, tuple[str, Fraction]]:
    units = {}
    for dimension, entries in _TABLE.items():
        for entry in entries.split():
            name, size = entry.split("=")
            units[name] = (dimension, Fraction(size))
    for name, (dimension, size) in list(units.items()):
        if dimension == "length":
            for power, words in ((2, ("square ", "sq ", "平方")), (3, ("cubic ", "cu ", "立方"))):
                powers = [f"{name}^{power}", *(word + name for word in words)]
                units |= dict.fromkeys(powers, (f"{dimension}^{power}", size**power))
    return units


# Words that count, after a Chinese numeral: 三个, 两本.
MEASURE_WORDS = frozenset(
    "个只条张本支枝颗粒块片头匹辆台架棵朵双对次倍人名位岁件套间层页篇首袋瓶盒箱桶包组排行列道题种份度"
)

UNITS = _parsed()  # singular, lower case -> (dimension, size)


def singular(name: str) -> str:
    """Drop the plural's s, where the unit is known without it."""
    name, slash, rest = name.partition("/")
    one = name.removesuffix("s") + slash + rest
    return one if one in UNITS else name + slash + rest
