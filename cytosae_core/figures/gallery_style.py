"""The gallery's style sheet: system fonts, light and dark, one column on a small screen. No outside reference."""

from __future__ import annotations

CSS = """
:root{color-scheme:light dark;--ink:#1c2329;--muted:#56616a;--rule:#d5dadd;--paper:#fff;--tint:#f4f6f7;
--warn:#fbf0d5;--warnink:#6b4200;--bar:#0072b2;--link:#0b5a8f}
@media (prefers-color-scheme:dark){:root{--ink:#e4e8ea;--muted:#a3adb4;--rule:#3a444b;--paper:#15191c;
--tint:#20262a;--warn:#4a3608;--warnink:#ffe2a6;--bar:#5aa9dd;--link:#8ec5ea}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-padding-top:3.2rem}
body{margin:0;background:var(--paper);color:var(--ink);overflow-wrap:anywhere;
font:16px/1.5 "Helvetica Neue",Helvetica,Arial,"Liberation Sans",sans-serif}
.band{position:sticky;top:0;z-index:2;background:var(--warn);color:var(--warnink);font-weight:700;
font-size:13px;text-align:center;padding:7px 16px}
main{max-width:1180px;margin:0 auto;padding:8px 20px 60px}
h1{font-size:27px;line-height:1.2;margin:20px 0 8px}
h2{font-size:21px;margin:0}
h3{font-size:15px;margin:22px 0 8px}
p{margin:0 0 10px;max-width:46em}
a{color:var(--link)}
a:focus-visible,summary:focus-visible{outline:2px solid var(--bar);outline-offset:2px}
.muted{color:var(--muted);font-size:14px}
.index{list-style:none;display:grid;grid-template-columns:repeat(auto-fill,minmax(210px,1fr));gap:12px;
padding:0;margin:16px 0}
.index a{display:block;height:100%;border:1px solid var(--rule);border-radius:6px;padding:8px;color:inherit;
text-decoration:none;font-size:14px;line-height:1.35}
.index a:hover{border-color:var(--bar)}
.index b{color:var(--link)}
.index img,.tile img{display:block;width:100%;height:auto;border-radius:3px}
.index img{margin-bottom:6px}
.index .flag{display:block;color:var(--warnink);background:var(--warn);border-radius:3px;padding:0 4px;
margin-top:4px}
article{border-top:2px solid var(--rule);padding-top:18px;margin-top:40px}
.head{display:flex;flex-wrap:wrap;gap:4px 16px;align-items:baseline;justify-content:space-between}
.warning{background:var(--warn);color:var(--warnink);padding:8px 12px;border-radius:4px;margin:10px 0;
max-width:none}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:10px 20px;margin:12px 0}
.facts div{border-top:1px solid var(--rule);padding-top:6px}
.facts dt{font-size:13px;color:var(--muted)}
.facts dd{margin:0;font-size:17px;font-weight:600}
.facts small{display:block;font-weight:400;font-size:13px;color:var(--muted);line-height:1.35}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(215px,1fr));gap:12px;margin:0}
.tile{margin:0}
.tile figcaption{font-size:13px;line-height:1.35;margin-top:3px}
.tile figcaption span{color:var(--muted)}
.two{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:8px 32px}
table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:600;color:var(--muted);font-size:13px;border-bottom:1px solid var(--ink);
padding:3px 10px 3px 0;vertical-align:bottom}
td{border-bottom:1px solid var(--rule);padding:3px 10px 3px 0}
.n{text-align:right}
.scroll{overflow-x:auto}
.scale{height:12px;border-radius:2px;max-width:260px;margin:4px 0 2px}
.ends{display:flex;justify-content:space-between;max-width:260px;font-size:13px;color:var(--muted)}
svg{display:block;width:100%;height:auto;max-width:460px}
svg rect{fill:var(--bar)}
svg text{fill:var(--muted);font-size:11px}
svg line{stroke:var(--rule)}
@media (max-width:640px){main{padding:4px 14px 40px}h1{font-size:23px}.two{grid-template-columns:minmax(0,1fr)}
.tiles{grid-template-columns:repeat(auto-fill,minmax(200px,1fr))}}
@media print{.band{position:static}article{break-before:page}}
"""
