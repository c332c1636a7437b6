"""How the report looks: light and dark by what the reader's system says, and plain on paper."""

from __future__ import annotations

__all__ = ["CSS"]

CSS = """
:root { color-scheme: light dark; --page: #ffffff; --text: #1b1f23; --soft: #57606a;
  --line: #d0d7de; --panel: #f6f8fa; --good: #00664b; --bad: #a33c00; --accent: #0072b2;
  --empty: #bbbbbb; --done: #009e73; --gaps: #e69f00; --pending: #f2f2f0; --failed: #d55e00;
  --mark: #1b1f23; --soft-mark: #8c959f; --read: #0072b2; --operate: #e69f00;
  --aggregate: #cc79a7; --finalize: #b8a800; --write: #009e73; --sync: #56b4e9;
  --other: #8c959f; --within: #5b9bd0; --lane: #f3f4f6; --t0: #fde725; --t1: #90d743; --t2: #35b779;
  --t3: #21918c; --t4: #31688e; --t5: #443983; --t6: #440154; }
@media (prefers-color-scheme: dark) { :root { --page: #14181c; --text: #e4e7ea; --soft: #a3adb8;
  --line: #38414a; --panel: #1c2228; --good: #4fd1a5; --bad: #ff9a5c; --accent: #6bb8ee;
  --empty: #6e7781; --pending: #262d34; --soft-mark: #8a949e; --lane: #1c2228;
  --finalize: #f0e442; --within: #3f7fb3; --t0: #440154; --t1: #443983; --t2: #31688e;
  --t4: #35b779; --t5: #90d743; --t6: #fde725; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 24px 56px; }
h1 { font-size: 22px; line-height: 1.3; margin: 8px 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 36px 0 10px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 14px; margin: 0 0 6px; font-weight: 600; }
p { margin: 6px 0; }
a { color: var(--accent); }
code, pre, .id { font: 12.5px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
.badge { display: inline-block; font-weight: 600; padding: 1px 10px; border-radius: 12px;
  border: 1.5px solid currentColor; }
.good { color: var(--good); } .bad { color: var(--bad); }
.note, .what { color: var(--soft); font-size: 13px; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(172px, 1fr)); gap: 10px;
  margin: 18px 0 8px; }
.fact { background: var(--panel); border: 1px solid var(--line); border-radius: 6px;
  padding: 8px 12px; }
.fact b { display: block; font-size: 18px; font-weight: 600; line-height: 1.35;
  overflow-wrap: anywhere; }
.fact.warn { border-color: var(--bad); } .fact.warn b { color: var(--bad); }
.side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(430px, 100%), 1fr));
  gap: 22px 32px; align-items: start; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 18px; margin: 8px 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; min-width: 60%; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { color: var(--soft); font-weight: 500; white-space: nowrap; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
td { overflow-wrap: anywhere; } td .id { white-space: nowrap; }
.what { overflow-wrap: anywhere; } .timeline { min-width: 640px; }
details { border: 1px solid var(--line); border-radius: 6px; margin: 8px 0; padding: 6px 12px; }
summary { cursor: pointer; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--panel); padding: 10px; border-radius: 4px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
ul { padding-left: 20px; margin: 6px 0; } li { overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg.defs { position: absolute; width: 0; height: 0; }
svg svg { width: auto; }
.key svg { display: inline-block; width: 18px; height: 14px; vertical-align: -2px;
  margin-right: 6px; }
h2 + .side { margin-top: 0; } .side { margin-top: 22px; }
.keys { font-size: 13px; color: var(--soft); }
.key { display: inline-block; margin: 0 16px 2px 0; }
text { font: 11.5px system-ui, -apple-system, "Segoe UI", Arial, sans-serif; fill: var(--soft); }
.end { text-anchor: end; } .mid, .axis { text-anchor: middle; }
.frame { fill: none; stroke: var(--soft-mark); }
.cells path, .cells rect { shape-rendering: crispEdges; }
.cells rect, .over { fill: transparent; }
.cells rect:hover, .over:hover { stroke: var(--text); stroke-width: 2px;
  vector-effect: non-scaling-stroke; }
.lines { fill: none; stroke: var(--page); stroke-width: 1px; vector-effect: non-scaling-stroke; }
.outline { stroke: var(--soft-mark); stroke-width: 1px; }
.o-failed { stroke: var(--mark); stroke-width: 1.2px; vector-effect: non-scaling-stroke; }
.s-empty { fill: var(--empty); } .s-done { fill: var(--done); } .s-gaps { fill: var(--gaps); }
.s-pending { fill: var(--pending); } .s-failed { fill: var(--failed); }
.mark-failed { stroke: #1b1f23; } .mark-gaps { stroke: #5c3d00; }
.mark-pending { stroke: var(--soft-mark); }
.s-t0 { fill: var(--t0); } .s-t1 { fill: var(--t1); } .s-t2 { fill: var(--t2); }
.s-t3 { fill: var(--t3); } .s-t4 { fill: var(--t4); } .s-t5 { fill: var(--t5); }
.s-t6 { fill: var(--t6); }
.f-read { fill: var(--read); } .f-operate { fill: var(--operate); }
.f-aggregate { fill: var(--aggregate); } .f-finalize { fill: var(--finalize); }
.f-write { fill: var(--write); } .f-sync { fill: var(--sync); } .f-other { fill: var(--other); }
.f-failed { fill: var(--failed); stroke: var(--mark); stroke-width: 1px; }
.lane { fill: var(--lane); } .grid { stroke: var(--line); }
.cut { fill: var(--page); stroke: var(--soft-mark); stroke-dasharray: 3 3; }
.m-within { fill: var(--within); } .m-above { fill: var(--failed); stroke: var(--mark); }
.line-planned { stroke: var(--text); stroke-width: 1.6px; }
.line-limit { stroke: var(--bad); stroke-width: 1.6px; stroke-dasharray: 5 3; }
@media print { :root { --page: #ffffff; --text: #000000; --soft: #333333; --line: #999999;
  --panel: #ffffff; --good: #00664b; --bad: #a33c00; --lane: #f3f4f6; --pending: #f2f2f0;
  --empty: #bbbbbb; --finalize: #b8a800; --within: #5b9bd0; --t0: #fde725; --t1: #90d743;
  --t2: #35b779; --t4: #31688e; --t5: #443983; --t6: #440154; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  main { max-width: none; padding: 0; } body { font-size: 11pt; }
  .wide { overflow: visible; } .timeline { min-width: 0; } td, th { padding-right: 7px; }
  table, td .id { font-size: 7.5pt; }
  h2 { break-after: avoid; } svg, .fact, tr { break-inside: avoid; }
  .side { grid-template-columns: 1fr 1fr; }
  details:not([open])::details-content { content-visibility: visible; display: block; } }
"""
