"""The report's style sheet: light, system fonts, two widths of screen, A4. It refers to nothing outside the page."""

from __future__ import annotations

CSS = """
:root{--ink:#1c2329;--muted:#56616a;--rule:#d5dadd;--tint:#f4f6f7;--hold:#19598f;--differ:#a84a00;
--warn:#fbf0d5;
--sans:"Helvetica Neue",Helvetica,Arial,"Liberation Sans",sans-serif;
--serif:Charter,"Iowan Old Style","Palatino Linotype",Palatino,Georgia,"Liberation Serif",serif;
--mono:ui-monospace,Menlo,Consolas,"Liberation Mono",monospace}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:3rem}
body{counter-reset:fig;margin:0;background:#fff;color:var(--ink);font:16px/1.5 var(--serif);overflow-wrap:anywhere}
.sheet{max-width:952px;margin:0 auto;padding:0 24px 48px}
.band{position:sticky;top:0;z-index:2;background:var(--warn);border-bottom:1px solid #e5c77a;color:#6b4200;
font:700 12px/1.3 var(--sans);letter-spacing:.09em;text-align:center;padding:6px 24px}
.masthead{display:flex;flex-wrap:wrap;justify-content:space-between;gap:2px 24px;padding:16px 0 8px;
border-bottom:2px solid var(--ink);font:12.5px/1.45 var(--sans);color:var(--muted)}
.masthead b{color:var(--ink)}
a{color:inherit;text-decoration-color:#9aa5ac;text-underline-offset:2px}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid #0072b2;outline-offset:2px}
h1{font-size:31px;line-height:1.2;font-weight:600;letter-spacing:-.01em;margin:20px 0 12px;max-width:30em;
text-wrap:balance}
h2{font-size:23px;line-height:1.25;font-weight:600;margin:0 0 6px}
h3{font:700 14.5px/1.35 var(--sans);margin:0 0 8px}
p{margin:0 0 12px}
.lead{font-size:18.5px;line-height:1.48;max-width:47em;margin-bottom:16px}
.intro{max-width:44em;color:var(--muted);margin-bottom:20px}
.small,.control{font:13px/1.5 var(--sans);color:var(--muted)}
.findings{list-style:none;counter-reset:f;display:grid;grid-template-columns:repeat(3,1fr);gap:24px;
padding:0;margin:0 0 22px}
.findings li{counter-increment:f;border-top:1px solid var(--ink);padding-top:8px;font-size:15px;
line-height:1.45}
.findings li::before{content:counter(f);font:700 13px/1 var(--sans);color:var(--muted);display:block;
margin-bottom:5px}
section{border-top:1px solid var(--rule);padding-top:28px;margin-top:36px}
section.first{border:0;padding-top:0;margin-top:0}
.pair{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:24px}
.card{border-top:3px solid var(--hold);padding-top:8px}
.card.differs{border-color:var(--differ)}
.card .count{font:600 30px/1.1 var(--serif);margin:0 0 2px}
.card .count small{font:700 14.5px/1.2 var(--sans);margin-left:6px}
.card.holds .count{color:var(--hold)}.card.differs .count{color:var(--differ)}
.card p{font:13px/1.45 var(--sans);color:var(--muted);margin-bottom:6px}
.strips{width:100%;border-collapse:collapse;font:13px/1.3 var(--sans)}
.strips td,.strips th{padding:2px 8px 2px 0;border-bottom:1px solid #eceff0;text-align:left;
font-weight:400;vertical-align:middle}
.strips td:last-child,.strips th:last-child{width:184px;padding-right:0}
.strips th:last-child{text-align:center}
.strips+p{margin-top:6px}
.strips td:first-child{width:5.2em;color:var(--muted)}
.strips th{font-size:11.5px;color:var(--muted)}
.funnel{margin:14px 0 24px}
.funnel svg{display:block;width:100%;height:16px}
.funnel ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 22px;margin:7px 0 0;padding:0;
font:13px/1.4 var(--sans);color:var(--muted)}
.funnel b{color:var(--ink)}
.swatch{display:inline-block;width:11px;height:11px;margin-right:6px;vertical-align:-1px}
.gap,.swatch.hatched{background:repeating-linear-gradient(135deg,#f4f6f7 0 4px,#c3cacf 4px 5px)}
td.gap{color:#49545c;font-style:italic}
td.gap span{background:rgba(255,255,255,.82);padding:0 3px}
.scroll{overflow-x:auto;margin:0 0 12px}
table.data{border-collapse:collapse;width:100%;font:13px/1.4 var(--sans);
font-variant-numeric:tabular-nums;overflow-wrap:break-word}
.cap{font:700 13.5px/1.4 var(--sans);margin:0 0 6px}
table.data th{text-align:left;font-weight:600;color:var(--muted);border-bottom:1px solid var(--ink);
padding:4px 12px 4px 0;vertical-align:bottom}
table.data td{border-bottom:1px solid #e6e9eb;padding:4px 12px 4px 0;vertical-align:top;max-width:30em}
table.data td.gap{padding-left:4px}
table.data td:first-child{font-weight:600}
table.data .n{text-align:right}
figure{margin:0 0 30px;min-width:0}
svg{display:block;max-width:100%;height:auto;font-family:var(--sans)}
.plot{overflow-x:auto}
.plot.wide svg{max-width:none}
figcaption{font:13px/1.5 var(--sans);color:var(--muted);margin-top:8px;max-width:60em}
figure.missing{background:var(--tint);padding:12px 14px;align-self:start}
.na{font:italic 14px/1.5 var(--sans);color:#49545c}
figure:not(.missing){counter-increment:fig}
figure:not(.missing) figcaption::before{content:"Figure " counter(fig) ". ";font-weight:700;
color:var(--ink)}
details{margin:6px 0 14px;font:13px/1.5 var(--sans)}
summary{cursor:pointer;color:var(--muted);text-decoration:underline;text-decoration-color:#9aa5ac;
text-underline-offset:2px}
details[open] summary{margin-bottom:8px}
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
code{font:12.5px/1.4 var(--mono)}
footer{border-top:2px solid var(--ink);margin-top:40px;padding-top:10px;font:13px/1.5 var(--sans);
color:var(--muted)}
footer b{color:var(--ink)}
.side{display:none}
@media (max-width:720px){
.sheet{padding:0 16px 32px}.band{padding:6px 16px}
h1{font-size:25px}.lead{font-size:17px}
.findings,.pair,.measures{grid-template-columns:minmax(0,1fr);gap:18px}
dl.facts{grid-template-columns:minmax(0,1fr);gap:0}dl.facts dd{margin-bottom:8px}
table.many{min-width:600px}}
@page{size:A4;margin:14mm 12mm 16mm 12mm;
@bottom-left{content:"Research use; not a medical device.";font:8pt Arial,sans-serif;color:#56616a}
@bottom-right{content:counter(page) " / " counter(pages);font:8pt Arial,sans-serif;color:#56616a}}
@media print{
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
body{font-size:10pt}
.sheet{max-width:none;padding:0}
.marked .sheet{padding-left:8mm}
.band{position:static}
.marked .side{display:block;position:fixed;left:0;top:0;bottom:0;width:4.5mm;background:var(--warn);
color:#6b4200;
font:700 6.5pt/4.5mm var(--sans);letter-spacing:.12em;text-align:center;writing-mode:vertical-rl;
transform:rotate(180deg)}
h1{font-size:17pt;margin:3mm 0 2mm}h2{font-size:14pt}.lead{font-size:10.5pt;margin-bottom:3mm}
.findings{margin-bottom:4mm}.findings li{font-size:9pt}
.card p,.funnel ul,.cap{font-size:8pt}.card .count{font-size:17pt}.funnel{margin:2mm 0 4mm}
section.first .scroll{break-inside:avoid}
section{margin-top:7mm;padding-top:5mm}
h2,h3,.intro,.cap{break-after:avoid}
figure,.card,.measures div,tr,.findings,.funnel,dl.facts{break-inside:avoid}
.scroll,.plot{overflow:visible}
.plot.wide svg{max-width:100%}
table.data,.strips,.small,.control,figcaption,dl.facts{font-size:8pt}
.measures dd{font-size:8.5pt}
details:not([open]),nav{display:none}
thead{display:table-header-group}
}
"""
