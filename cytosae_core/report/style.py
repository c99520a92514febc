"""The report's style sheet: light and dark screens, system fonts, two widths, A4. It refers to nothing outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .svg import STEPS

RGB = tuple[int, int, int]

# Name -> colour. Text colours reach 4.5 : 1 on `paper` and on `tint` (WCAG 2.1 AA), in both tables.
LIGHT = {
    "paper": "#ffffff", "ink": "#1c2329", "muted": "#56616a", "rule": "#d5dadd", "tint": "#f4f6f7",
    "faint": "#e8ebed", "hatch": "#a7b0b6", "grey": "#9aa5ac", "hold": "#19598f", "differ": "#a84a00",
    "good": "#0b6449", "unsure": "#755600", "warn": "#fbf0d5", "warnink": "#6b4200", "warnrule": "#e5c77a",
    "focus": "#0072b2", "s0": "#0072b2", "s1": "#c04b00", "s2": "#007a5a", "s3": "#a8467f", "s4": "#7a6100",
    "s5": "#4b3fae", "s6": "#3b3b3b", "s7": "#8c2130",
}  # fmt: skip
DARK = {
    "paper": "#14181b", "ink": "#e7ebed", "muted": "#a5afb6", "rule": "#3c464d", "tint": "#1e2428",
    "faint": "#2a3136", "hatch": "#68747c", "grey": "#7d8990", "hold": "#7db6ea", "differ": "#f2a365",
    "good": "#66cfa6", "unsure": "#e0bf5a", "warn": "#3a2e10", "warnink": "#f3d691", "warnrule": "#6b5520",
    "focus": "#7db6ea", "s0": "#62b2f0", "s1": "#ff9c52", "s2": "#45c9a1", "s3": "#e290c4", "s4": "#d6b84a",
    "s5": "#aaa0ff", "s6": "#c9ced2", "s7": "#f28f9b",
}  # fmt: skip
# Stops of the ramps, from 0 to 1.
RAMPS: Mapping[str, Mapping[str, Sequence[RGB]]] = {
    "light": {
        "d": ((25, 90, 150), (125, 175, 215), (250, 250, 248), (240, 170, 95), (170, 75, 5)),
        "q": ((246, 249, 251), (158, 198, 224), (25, 90, 150)),
    },
    "dark": {
        "d": ((104, 176, 240), (48, 92, 132), (36, 42, 47), (130, 76, 24), (244, 152, 66)),
        "q": ((36, 42, 47), (48, 92, 132), (124, 188, 244)),
    },
}


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, 0 (black) to 1 (white); WCAG 2.1."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def mixed(stops: Sequence[RGB], share: float) -> str:
    """The colour at `share` (0 to 1) of a ramp, #rrggbb."""
    place = share * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    part = place - index
    colour = (round(a + (b - a) * part) for a, b in zip(stops[index], stops[index + 1], strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in colour)


def steps(mode: str) -> dict[str, str]:
    """Every step of every ramp, and the colour of text on it (`td3` on `d3`)."""
    found: dict[str, str] = {}
    for ramp, stops in RAMPS[mode].items():
        for index in range(STEPS[ramp]):
            fill = mixed(stops, index / (STEPS[ramp] - 1))
            # Black from the luminance on at which it reads better than white.
            found |= {
                f"{ramp}{index}": fill,
                f"t{ramp}{index}": "#000000" if luminance(fill) > 0.179 else "#ffffff",
            }
    return found


def _declared(colours: Mapping[str, str], mode: str) -> str:
    return "".join(f"--{name}:{value};" for name, value in {**colours, **steps(mode)}.items())


_SHEET = """
:root{
--sans:"Helvetica Neue",Helvetica,Arial,"Liberation Sans",sans-serif;
--serif:Charter,"Iowan Old Style","Palatino Linotype",Palatino,Georgia,"Liberation Serif",serif;
--mono:ui-monospace,Menlo,Consolas,"Liberation Mono",monospace}
*{box-sizing:border-box}
[hidden]{display:none!important}
html{-webkit-text-size-adjust:100%;scroll-padding-top:3rem}
body{counter-reset:fig;margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 var(--serif);
overflow-wrap:anywhere}
.sheet{max-width:952px;margin:0 auto;padding:0 24px 48px}
.skip{position:absolute;left:-999px}
.skip:focus{left:8px;top:8px;z-index:3;background:var(--paper);padding:6px 10px}
.band{position:sticky;top:0;z-index:2;background:var(--warn);border-bottom:1px solid var(--warnrule);
color:var(--warnink);font:700 12px/1.3 var(--sans);letter-spacing:.09em;text-align:center;padding:6px 24px}
.masthead{display:flex;flex-wrap:wrap;justify-content:space-between;gap:2px 24px;padding:16px 0 8px;
border-bottom:2px solid var(--ink);font:12.5px/1.45 var(--sans);color:var(--muted)}
.masthead b{color:var(--ink)}
.use{font:700 12.5px/1.4 var(--sans);color:var(--muted);margin:8px 0 0}
a{color:inherit;text-decoration-color:var(--grey);text-underline-offset:2px}
a:focus-visible,summary:focus-visible,.scroll:focus-visible,.plot:focus-visible,button:focus-visible,
input:focus-visible,select:focus-visible,pre:focus-visible{outline:2px solid var(--focus);outline-offset:2px}
h1{font-size:29px;line-height:1.2;font-weight:600;letter-spacing:-.01em;margin:16px 0 12px;max-width:31em;
text-wrap:balance}
h2{font-size:23px;line-height:1.25;font-weight:600;margin:0 0 6px}
h2 .no{font:600 13px/1 var(--sans);color:var(--muted);margin-right:10px;vertical-align:3px}
h3{font:700 14.5px/1.35 var(--sans);margin:0 0 8px}
h4{font:700 13.5px/1.35 var(--sans);margin:0 0 6px}
p{margin:0 0 12px}
.lead{font-size:18.5px;line-height:1.48;max-width:47em;margin-bottom:16px}
.intro{max-width:44em;color:var(--muted);margin-bottom:20px}
.small,.control{font:13px/1.5 var(--sans);color:var(--muted)}
.verdict{border-left:4px solid var(--muted);padding:2px 0 2px 16px;margin:0 0 20px}
.verdict .state{display:flex;align-items:center;gap:9px;font:700 16px/1.3 var(--sans);margin:0 0 5px;
color:var(--muted)}
.verdict .state svg{flex:none}
.verdict .lead{margin:0 0 4px}
.verdict.generalises{border-color:var(--good)}.verdict.generalises .state{color:var(--good)}
.verdict.does_not_generalise{border-color:var(--differ)}.verdict.does_not_generalise .state{color:var(--differ)}
.verdict.provisional{border-color:var(--unsure)}.verdict.provisional .state{color:var(--unsure)}
.key{display:grid;grid-template-columns:minmax(0,1.15fr) minmax(0,1fr);gap:24px;margin:0 0 20px}
.headline .name{font:700 13.5px/1.3 var(--sans);margin:0}
.headline .value{font:600 34px/1.15 var(--serif);margin:2px 0 0;font-variant-numeric:lining-nums tabular-nums}
.headline .value small{font:13px/1.4 var(--sans);color:var(--muted);margin-left:8px}
.headline .plot{margin-top:6px}
.findings{list-style:none;counter-reset:f;display:grid;grid-template-columns:repeat(3,1fr);gap:24px;
padding:0;margin:0 0 22px}
.findings li{counter-increment:f;border-top:1px solid var(--ink);padding-top:8px;font-size:15px;
line-height:1.45}
.findings li::before{content:counter(f);font:700 13px/1 var(--sans);color:var(--muted);display:block;
margin-bottom:5px}
section{border-top:1px solid var(--rule);padding-top:28px;margin-top:36px}
section section{border:0;padding:0;margin:0}
section.first{border:0;padding-top:0;margin-top:0}
.contents{columns:2;column-gap:24px;font:13px/1.5 var(--sans);margin:0 0 8px;padding:0;list-style:none}
.contents li{break-inside:avoid}
.contents span{display:inline-block;width:2.6em;color:var(--muted)}
.pair{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:24px}
.card{border-top:3px solid var(--hold);padding-top:8px;min-width:0}
.card.differs{border-color:var(--differ)}
.card .count{font:600 30px/1.1 var(--serif);margin:0 0 2px}
.card .count small{font:700 14.5px/1.2 var(--sans);margin-left:6px}
.card.holds .count{color:var(--hold)}.card.differs .count{color:var(--differ)}
.card p{font:13px/1.45 var(--sans);color:var(--muted);margin-bottom:6px}
.concept{border-top:2px solid var(--hold);padding-top:7px;margin-bottom:22px;min-width:0}
.concept.failed{border-color:var(--differ)}
.concept h4 small{font-weight:400;color:var(--muted);margin-left:6px}
.concept p{font:13px/1.45 var(--sans);margin-bottom:6px}
.concept dl.facts{margin:6px 0 0;grid-template-columns:9.5em minmax(0,1fr)}
.gates{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;padding:0;margin:6px 0 0;
font:12.5px/1.5 var(--sans)}
.gates b{font-weight:700;margin-right:4px}
.gates .pass b{color:var(--good)}.gates .fail,.gates .fail b{color:var(--differ);font-weight:700}
.gates .open{color:var(--muted)}
.strips{width:100%;border-collapse:collapse;font:13px/1.3 var(--sans)}
.strips td,.strips th{padding:2px 8px 2px 0;border-bottom:1px solid var(--faint);text-align:left;
font-weight:400;vertical-align:middle}
.strips td:last-child,.strips th:last-child{width:184px;padding-right:0}
.strips thead th:last-child{text-align:center}
.strips+p{margin-top:6px}
.strips tbody th{width:5.2em;color:var(--muted)}
.strips thead th{font-size:11.5px;color:var(--muted)}
.funnel{margin:14px 0 24px}
.funnel svg{display:block;width:100%;height:16px}
.funnel ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 22px;margin:7px 0 0;padding:0;
font:13px/1.4 var(--sans);color:var(--muted)}
.funnel b{color:var(--ink)}
.swatch{display:inline-block;width:11px;height:11px;margin-right:6px;vertical-align:-1px}
.gap,.swatch.hatched{background:repeating-linear-gradient(135deg,var(--tint) 0 4px,var(--hatch) 4px 5px)}
td.gap{color:var(--muted);font-style:italic}
td.gap span{background:var(--paper);padding:0 3px}
.scroll{overflow-x:auto;margin:0 0 12px}
table.data{border-collapse:collapse;width:100%;font:13px/1.4 var(--sans);
font-variant-numeric:tabular-nums;overflow-wrap:break-word}
.cap{font:700 13.5px/1.4 var(--sans);margin:0 0 6px}
table.data th{text-align:left;font-weight:600;color:var(--muted);border-bottom:1px solid var(--ink);
padding:4px 12px 4px 0;vertical-align:bottom}
table.data td,table.data tbody th{border-bottom:1px solid var(--faint);padding:4px 12px 4px 0;vertical-align:top;
max-width:30em}
table.data tbody th{color:var(--ink);min-width:6em}
table.data td.gap{padding-left:4px}
table.data .n{text-align:right}
table.data.catalogue .n{white-space:nowrap}
table.data.catalogue td:last-child{min-width:14em}
table.data tr:target th{background:var(--warn);color:var(--warnink)}
figure{margin:0 0 30px;min-width:0}
svg{display:block;max-width:100%;height:auto;font-family:var(--sans)}
.plot{overflow-x:auto}
.plot.wide svg{max-width:none}
figcaption{font:13px/1.5 var(--sans);color:var(--muted);margin-top:8px;max-width:60em}
figure.missing{background:var(--tint);padding:12px 14px;align-self:start}
.na{font:italic 14px/1.5 var(--sans);color:var(--muted)}
figure:not(.missing){counter-increment:fig}
figure:not(.missing) figcaption::before{content:"Figure " counter(fig) ". ";font-weight:700;
color:var(--ink)}
details{margin:6px 0 14px;font:13px/1.5 var(--sans)}
summary{cursor:pointer;color:var(--muted);text-decoration:underline;text-decoration-color:var(--grey);
text-underline-offset:2px}
details[open]>summary{margin-bottom:8px}
.measures{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:16px 24px;margin:0 0 28px}
.measures.one{grid-template-columns:minmax(0,1fr);align-content:start}
.measures div{border-top:1px solid var(--rule);padding-top:8px}
.measures dt{font:700 13.5px/1.3 var(--sans)}
.measures dd{margin:2px 0 0;font:13.5px/1.5 var(--sans);color:var(--muted)}
.measures dd b{display:block;font:600 25px/1.2 var(--serif);color:var(--ink);
font-variant-numeric:lining-nums tabular-nums}
ul.plain,ol.plain{margin:0 0 16px;padding-left:1.2em;max-width:46em;font-size:15.5px}
ul.plain li,ol.plain li{margin-bottom:5px}
dl.facts{display:grid;grid-template-columns:max-content minmax(0,1fr);gap:3px 18px;
font:13px/1.5 var(--sans);margin:0 0 18px}
dl.facts dt{color:var(--muted)}
dl.facts dd{margin:0}
code,pre{font:12.5px/1.4 var(--mono)}
pre.rows{overflow-x:auto;margin:0 0 16px;font-size:11.5px;line-height:1.5;overflow-wrap:normal}
pre.rows :target{background:var(--warn);color:var(--warnink)}
.controls{display:flex;flex-wrap:wrap;gap:8px 16px;align-items:end;background:var(--tint);padding:10px 12px;
margin:0 0 8px;font:13px/1.4 var(--sans)}
.controls label{display:block;color:var(--muted)}
input,select,button{font:13px/1.3 var(--sans);color:var(--ink);background:var(--paper);
border:1px solid var(--muted);border-radius:2px;padding:4px 7px}
.controls input,.controls select{display:block;min-width:9em;max-width:15em}
button{cursor:pointer}button:disabled{color:var(--muted);border-color:var(--rule);cursor:default}
th [role=button]{cursor:pointer;text-decoration:underline;text-decoration-color:var(--grey);
text-underline-offset:2px}
th [role=button]:focus-visible{outline:2px solid var(--focus);outline-offset:2px}
.pager{display:flex;gap:8px;align-items:center;margin:0 0 12px;font:13px/1.4 var(--sans)}
footer{border-top:2px solid var(--ink);margin-top:40px;padding-top:10px;font:13px/1.5 var(--sans);
color:var(--muted)}
footer b{color:var(--ink)}
.side{display:none}
@media (max-width:720px){
.sheet{padding:0 16px 32px}.band{padding:6px 16px}
h1{font-size:24px}.lead{font-size:17px}
.findings,.pair,.measures,.key{grid-template-columns:minmax(0,1fr);gap:18px}
.contents{columns:1}
dl.facts,.concept dl.facts{grid-template-columns:minmax(0,1fr);gap:0}dl.facts dd{margin-bottom:8px}
.controls label,.controls input,.controls select{width:100%;max-width:none}
table.many{min-width:600px}}
@page{size:A4;margin:14mm 12mm 16mm 12mm;
@bottom-left{content:"Research use; not a medical device.";font:8pt Arial,sans-serif;color:#56616a}
@bottom-right{content:counter(page) " / " counter(pages);font:8pt Arial,sans-serif;color:#56616a}}
@media print{
:root{color-scheme:light}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
body{font-size:10pt}
.sheet{max-width:none;padding:0}
.marked .sheet{padding-left:8mm}
.band{position:static}
.marked .side{display:block;position:fixed;left:0;top:0;bottom:0;width:4.5mm;background:var(--warn);
color:var(--warnink);
font:700 6.5pt/4.5mm var(--sans);letter-spacing:.12em;text-align:center;writing-mode:vertical-rl;
transform:rotate(180deg)}
h1{font-size:16pt;margin:3mm 0 2mm}h2{font-size:14pt}.lead{font-size:10.5pt;margin-bottom:3mm}
.verdict{margin-bottom:4mm}.verdict .state{font-size:11pt}.headline .value{font-size:22pt}
.key{gap:6mm;margin-bottom:4mm}
.findings{margin-bottom:4mm}.findings li{font-size:9pt}
.card p,.funnel ul,.cap{font-size:8pt}.card .count{font-size:17pt}.funnel{margin:2mm 0 4mm}
section.first .scroll{break-inside:avoid}
section{margin-top:7mm;padding-top:5mm}
h2,h3,h4,.intro,.cap{break-after:avoid}
figure,.card,.concept,.measures div,tr,.findings,.funnel,dl.facts,.verdict,.key{break-inside:avoid}
.scroll,.plot{overflow:visible}
.plot.wide svg{max-width:100%}
table.data,.strips,.small,.control,figcaption,dl.facts,.gates,.concept p{font-size:8pt}
.measures dd{font-size:8.5pt}
ul.plain,ol.plain{font-size:9.5pt}
details:not([open]),nav,.controls,.pager,.skip,.screen{display:none!important}
.catalogue tbody tr:nth-child(n+51){display:none}
pre.rows{font-size:5.5pt;white-space:pre-wrap}
thead{display:table-header-group}
}
"""
CSS = (
    f"\n:root{{color-scheme:light dark;{_declared(LIGHT, 'light')}}}"
    f"\n@media screen and (prefers-color-scheme:dark){{:root{{{_declared(DARK, 'dark')}}}}}{_SHEET}"
)
