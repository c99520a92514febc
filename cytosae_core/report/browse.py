"""The table of all concepts: plain rows without a script; with it, search, filters, sorting and pages of 50.

The script reads one compact table that stands in the page, and only when it is first used. It writes text, never
markup, and asks nothing of anybody.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Sequence

from .figures_data import LARGE, Concepts, gate_word, named, state_word
from .page import absent, details, tag, words
from .text import Json, escape

FIRST = 200  # rows that stand in the page itself
PER_PAGE = 2000  # concepts on a linked page
COLUMNS = (
    "Concept",
    "Speaks of",
    "State",
    "Verdict",
    "AUROC",
    "95 % interval",
    "New hospital",
    "Sites",
    "Fails",
)
NUMBERS = {
    "estimate": "estimate",
    "low": "low",
    "high": "high",
    "plow": "prediction_low",
    "phigh": "prediction_high",
}
FILTERS = ("target", "state", "verdict")
LABELS = {"target": "Speaks of", "state": "State", "verdict": "Verdict", "fails": "Fails"}
WHAT = (
    "AUROC: pooled over sites, .5 says nothing. New hospital: 95 % prediction interval. Fails: checks that the "
    "concept does not pass; checks that were not made are not listed here but stop it all the same."
)
SCRIPT = """"use strict";(function(){
var by=function(id){return document.getElementById(id)},form=by("browse"),table=by("catalogue");
if(!form||!table)return;
var body=table.tBodies[0],said=by("b-said"),pager=by("b-pager"),rest=by("catalogue-rest"),PAGE=50;
var keys=["target","state","verdict","fails"];
var sorts=["id","target","state","verdict","estimate",null,null,"sites",null];
var data=null,found=null,page=0,sort="",down=false,orders={};
function load(){
 if(data)return;
 var raw=JSON.parse(by("concept-data").textContent);
 data={n:raw.id.length,id:raw.id,low:raw.id.map(function(x){return x.toLowerCase()}),names:raw.names,per:raw.per};
 ["target","state","verdict","estimate","low_","high_","plow","phigh","sites","fails"].forEach(function(k){
  data[k]=Int16Array.from(raw[k])});
 if(rest)rest.hidden=true;
 by("b-note").hidden=true;pager.hidden=false;
}
function order(){
 if(!sort)return null;
 var name=sort+(down?"-":"+");
 if(!orders[name]){
  var list=new Int32Array(data.n),i,sign=down?-1:1,column=sort==="id"?null:data[sort];
  for(i=0;i<data.n;i++)list[i]=i;
  list.sort(column?function(a,b){var x=column[a],y=column[b];
   return x===y?a-b:x<0?1:y<0?-1:sign*(x-y)}:function(a,b){var x=data.id[a],y=data.id[b];
   return x===y?a-b:sign*(x<y?-1:1)});
  orders[name]=list;
 }
 return orders[name];
}
function hits(list,q){return list.map(function(x){return x.toLowerCase().indexOf(q)>=0})}
function select(){
 load();
 var q=by("b-q").value.trim().toLowerCase(),want={},n=data.n,out=new Int32Array(n),k=0,list=order();
 keys.forEach(function(x){want[x]=Number(by("b-"+x).value)});
 var t=hits(data.names.target,q),s=hits(data.names.state,q);
 for(var j=0;j<n;j++){
  var i=list?list[j]:j;
  if(want.target>=0&&data.target[i]!==want.target)continue;
  if(want.state>=0&&data.state[i]!==want.state)continue;
  if(want.verdict>=0&&data.verdict[i]!==want.verdict)continue;
  if(want.fails>=0&&!(data.fails[i]>>want.fails&1))continue;
  if(q&&!(t[data.target[i]]||s[data.state[i]]||data.low[i].indexOf(q)>=0))continue;
  out[k++]=i;
 }
 found=out.subarray(0,k);
}
function group(x){return String(x).replace(/\\B(?=(\\d{3})+$)/g,",")}
function share(x){return x<0?"none":(x/1000).toFixed(3)}
function pair(a,b){return a<0||b<0?"none":share(a)+" to "+share(b)}
function name(kind,i){var v=data[kind][i];return v<0?"none":data.names[kind][v]}
function fails(i){
 var list=[];data.names.fails.forEach(function(x,g){if(data.fails[i]>>g&1)list.push(x)});return list.join(", ");
}
function cell(row,kind,text,cls){
 var made=document.createElement(kind);made.textContent=text;if(cls)made.className=cls;
 row.appendChild(made);return made;
}
function row(i){
 var tr=document.createElement("tr"),th=cell(tr,"th",data.per?"":data.id[i]);th.scope="row";
 if(data.per){
  var a=document.createElement("a"),no=String(Math.floor(i/data.per)+1);
  while(no.length<3)no="0"+no;
  a.href="concepts-"+no+".html#"+encodeURIComponent(data.id[i]);a.textContent=data.id[i];th.appendChild(a);
 }
 ["target","state","verdict"].forEach(function(k){cell(tr,"td",name(k,i))});
 cell(tr,"td",share(data.estimate[i]),"n");cell(tr,"td",pair(data.low_[i],data.high_[i]),"n");
 cell(tr,"td",pair(data.plow[i],data.phigh[i]),"n");cell(tr,"td",group(data.sites[i]),"n");cell(tr,"td",fails(i));
 return tr;
}
function show(){
 var last=Math.max(0,Math.ceil(found.length/PAGE)-1);page=Math.min(Math.max(page,0),last);
 var from=page*PAGE,to=Math.min(from+PAGE,found.length),made=document.createDocumentFragment();
 for(var j=from;j<to;j++)made.appendChild(row(found[j]));
 body.replaceChildren(made);
 by("b-back").disabled=page===0;by("b-next").disabled=page===last;
 by("b-at").textContent="Page "+group(page+1)+" of "+group(last+1);
 said.textContent=found.length?"Concepts "+group(from+1)+" to "+group(to)+" of "+group(found.length)+" found ("+
  group(data.n)+" in all).":"No concept found ("+group(data.n)+" in all).";
}
function go(to){if(!found)select();page=to;show()}
function renew(){select();page=0;show()}
function marked(){
 Array.prototype.forEach.call(table.tHead.rows[0].cells,function(th,i){
  if(!sorts[i])return;
  if(sorts[i]===sort)th.setAttribute("aria-sort",down?"descending":"ascending");else th.removeAttribute("aria-sort");
 });
}
Array.prototype.forEach.call(table.tHead.rows[0].cells,function(th,i){
 if(!sorts[i])return;
 var button=document.createElement("span");button.setAttribute("role","button");button.tabIndex=0;
 button.textContent=th.textContent;th.textContent="";th.appendChild(button);
 button.addEventListener("keydown",function(e){
  if(e.key==="Enter"||e.key===" "){e.preventDefault();button.click()}});
 button.addEventListener("click",function(){
  if(sort!==sorts[i]){sort=sorts[i];down=sort==="estimate"||sort==="sites"||sort==="state"}
  else if(down===(sort==="estimate"||sort==="sites"||sort==="state"))down=!down;else sort="";
  marked();renew();
 });
});
form.addEventListener("submit",function(e){e.preventDefault();renew()});
by("b-q").addEventListener("focus",function(){load()},{once:true});
by("b-q").addEventListener("input",renew);
keys.forEach(function(x){by("b-"+x).addEventListener("change",renew)});
by("b-clear").addEventListener("click",function(){
 by("b-q").value="";keys.forEach(function(x){by("b-"+x).value="-1"});sort="";marked();renew();by("b-q").focus()});
by("b-back").addEventListener("click",function(){go(page-1)});
by("b-next").addEventListener("click",function(){go(page+1)});
function hash(){
 var part=new URLSearchParams(location.hash.slice(1)),any=false;
 if(part.has("q")){by("b-q").value=part.get("q");any=true}
 keys.forEach(function(x){
  if(!part.has(x))return;
  Array.prototype.forEach.call(by("b-"+x).options,function(o){if(o.text===part.get(x)){o.selected=true;any=true}});
 });
 if(part.has("sort")&&sorts.indexOf(part.get("sort"))>=0){sort=part.get("sort");down=part.has("down");any=true}
 if(!any&&!part.has("page"))return;
 marked();select();page=Number(part.get("page")||1)-1;show();form.scrollIntoView();
}
form.hidden=false;pager.hidden=false;by("b-back").disabled=true;
for(var r=PAGE;r<body.rows.length;r++)body.rows[r].hidden=true;
if(body.rows.length>PAGE)
 by("b-note").textContent="The first "+PAGE+" of "+group(table.dataset.count)+", strongest first.";
window.addEventListener("hashchange",hash);hash();
})();"""
SCRIPT_SHA256 = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")


def page_name(number: int) -> str:
    """File name of a linked page, from 1."""
    return f"concepts-{number:03d}.html"


def page_count(concepts: Concepts) -> int:
    """Linked pages of a report: none up to `LARGE` concepts."""
    return math.ceil(concepts.count / PER_PAGE) if concepts.count > LARGE else 0


def row_cells(concepts: Concepts, place: int) -> list[str]:
    """One concept's line in every table of concepts; numbers are rounded as in the script's table."""
    low, high, plow, phigh = (
        _thousandths(concepts.value(name, place))
        for name in ("low", "high", "prediction_low", "prediction_high")
    )
    sites = concepts.value("sites", place)
    return [
        concepts.id(place),
        concepts.name("target", place) or "none",
        state_word(concepts.name("state", place)) or "none",
        concepts.name("verdict", place) or "none",
        _share(_thousandths(concepts.value("estimate", place))),
        _pair(low, high),
        _pair(plow, phigh),
        "none" if sites is None else f"{sites:,.0f}",
        ", ".join(gate_word(name) for name in concepts.failed(place)),
    ]


def _thousandths(value: float | None) -> int:
    """A share in thousandths; -1: none."""
    return -1 if value is None or not 0 <= value <= 32 else round(value * 1000)


def _share(value: int) -> str:
    return "none" if value < 0 else f"{value // 1000}.{value % 1000:03d}"


def _pair(low: int, high: int) -> str:
    return "none" if low < 0 or high < 0 else f"{_share(low)} to {_share(high)}"


def _row(concepts: Concepts, place: int, link: str) -> str:
    first, *rest = row_cells(concepts, place)
    name = words("a", first, href=f"{link}#{first}") if link else escape(first)
    cells = [
        f'<td class="n">{escape(text)}</td>' if 3 <= index <= 6 else f"<td>{escape(text)}</td>"
        for index, text in enumerate(rest)
    ]
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'


def header_row() -> str:
    """The header of a table of concepts."""
    cells = [
        words("th", name, scope="col", class_="n" if 4 <= index <= 7 else None)
        for index, name in enumerate(COLUMNS)
    ]
    return tag("thead", tag("tr", "".join(cells)))


def rows(concepts: Concepts, places: Sequence[int], linked: bool) -> str:
    """Rows of a table of concepts; `linked`: their names lead to the linked pages."""
    found = [_row(concepts, place, page_name(place // PER_PAGE + 1) if linked else "") for place in places]
    return tag("tbody", "".join(found))


def catalogue(report: Json) -> str:
    """The table of all concepts with its controls, the script and its data."""
    concepts = Concepts(report)
    if not concepts.count:
        return absent("the report has no concepts")
    linked = page_count(concepts) > 0
    first = min(FIRST, concepts.count)
    inner = tag(
        "table", header_row() + rows(concepts, range(first), linked), class_="data many catalogue", id="catalogue",
        aria_label="All concepts, strongest first",
        data_count=concepts.count,
    )  # fmt: skip
    shown = tag("div", inner, class_="scroll", tabindex=0)
    parts = [controls(concepts), _status(concepts, first), shown, _pager(), words("p", WHAT, class_="small")]
    parts.append(_others(concepts, first, linked))
    data = f'<script type="application/json" id="concept-data">{data_text(concepts)}</script>'
    return "".join(parts) + data + f"<script>{SCRIPT}</script>"


def _status(concepts: Concepts, first: int) -> str:
    note = (
        f"The first {first:,} of {concepts.count:,}, strongest first."
        if first < concepts.count
        else (f"All {concepts.count:,}, strongest first.")
    )
    live = tag("p", "", id="b-said", class_="small screen", role="status", aria_live="polite")
    return words("p", note, class_="small", id="b-note") + live


def _pager() -> str:
    back = words("button", "Previous 50", type="button", id="b-back")
    following = words("button", "Next 50", type="button", id="b-next")
    at = words("span", "", id="b-at")
    return tag("div", back + following + at, class_="pager", id="b-pager", hidden="hidden")


def _others(concepts: Concepts, first: int, linked: bool) -> str:
    """What comes after the first rows: links, or the rest of the table."""
    if linked:
        links = [
            tag("li", words("a", f"{page_span(concepts, number)}", href=page_name(number)))
            for number in range(1, page_count(concepts) + 1)
        ]
        text = "All concepts as plain pages, with the AUROC of every site"
        return details(text, tag("ul", "".join(links), class_="contents"))
    if first >= concepts.count:
        return ""
    inner = tag(
        "table", header_row() + rows(concepts, range(first, concepts.count), linked), class_="data many",
        aria_label="The other concepts",
    )  # fmt: skip
    made = details(
        f"The other {concepts.count - first:,} concepts", tag("div", inner, class_="scroll", tabindex=0)
    )
    return tag("div", made, id="catalogue-rest")


def page_span(concepts: Concepts, number: int) -> str:
    """What a linked page holds, in words."""
    start = (number - 1) * PER_PAGE
    stop = min(start + PER_PAGE, concepts.count)
    return f"{start + 1:,} to {stop:,}: {concepts.id(start)} … {concepts.id(stop - 1)}"


def controls(concepts: Concepts) -> str:
    """Search field and filters; hidden until the script runs."""
    search = _label(
        "Search by concept, kind or state", tag("input", id="b-q", type="search", autocomplete="off")
    )
    search = search.replace("></input>", ">")
    options = {name: concepts.names[name] for name in FILTERS} | {"fails": concepts.gates}
    shown = {"state": state_word, "fails": gate_word}
    picks = [
        _label(LABELS[name], _select(f"b-{name}", [shown.get(name, str)(item) for item in items]))
        for name, items in options.items()
    ]
    clear = words("button", "Clear", type="button", id="b-clear")
    inner = search + "".join(picks) + clear
    return tag(
        "form",
        inner,
        id="browse",
        class_="controls",
        role="search",
        aria_label="All concepts",
        hidden="hidden",
    )


def _label(text: str, control: str) -> str:
    return tag("label", escape(text) + control)


def _select(key: str, items: Sequence[str]) -> str:
    options = [words("option", "any", value=-1)]
    options += [words("option", item, value=index) for index, item in enumerate(items)]
    return tag("select", "".join(options), id=key)


def data_text(concepts: Concepts) -> str:
    """The script's table as JSON that cannot end a script element. Shares are thousandths, -1 stands for none."""
    columns: Json = {"id": [concepts.id(place) for place in range(concepts.count)]}
    for name in FILTERS:
        given = concepts.columns.get(name, [])
        columns[name] = _indices(given, concepts.names[name], concepts.count)
    for name, column in NUMBERS.items():
        key = f"{name}_" if name in ("low", "high") else name
        columns[key] = [_thousandths(value) for value in concepts.values(column)]
    columns["sites"] = [
        0 if value is None else min(round(value), 32767) for value in concepts.values("sites")
    ]
    columns["fails"] = _fails(concepts)
    names = {name: concepts.names[name] for name in FILTERS}
    names["state"] = [state_word(name) for name in names["state"]]
    columns["names"] = names | {"fails": [gate_word(name) for name in concepts.gates]}
    columns["per"] = PER_PAGE if page_count(concepts) else 0
    text = json.dumps(columns, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _indices(given: Sequence[object], names: Sequence[str], count: int) -> list[int]:
    known = [index if named(names, index) and isinstance(index, int) else -1 for index in given[:count]]
    return known + [-1] * (count - len(known))


def _fails(concepts: Concepts) -> list[int]:
    """Per concept a number whose bit g says that it fails gate g."""
    out = [0] * concepts.count
    for bit, name in enumerate(concepts.gates[:15]):
        for place, value in enumerate(concepts.gate_column(name)):
            if value == 0 and not isinstance(value, bool):
                out[place] |= 1 << bit
    return out
