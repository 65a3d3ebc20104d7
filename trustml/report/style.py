"""The style sheet of the report, as text: nothing is loaded from elsewhere.

Phone first: one column, tables and code scroll in their own boxes, figures keep the
width they were drawn for. Light and dark follow the reader's setting
(`prefers-color-scheme`), print is always light and keeps figures, cards and rows whole.
Text has a contrast of at least 4.5 : 1 on its background in both themes; series lines
at least 3 : 1.

Example::

    from trustml.report import style

    page = f'<style>{style.CSS}</style>'
"""

LIGHT = """
--ink: #1b2430; --muted: #596372; --grid: #d5dae1; --page: #f4f6f8; --card: #fffffe;
--edge: #dfe4ea; --good: #00754f; --warn: #b45309; --plain: #0072b2;
--s0: #4d4d4d; --s1: #0072b2; --s2: #d55e00; --s3: #008f68; --s4: #aa4499;
--s5: #93690a; --s6: #3a78b8;
"""

DARK = """
--ink: #e8ecf1; --muted: #a7b0bd; --grid: #37414d; --page: #12171d; --card: #1b222b;
--edge: #313b47; --good: #3ecf9f; --warn: #f5a84b; --plain: #5fb4f0;
--s0: #c4c9d0; --s1: #5fb4f0; --s2: #ff9a4d; --s3: #3ecf9f; --s4: #e58fd0;
--s5: #e0bd55; --s6: #8fc3f2;
"""

CSS = """
:root { color-scheme: light dark; LIGHT }
@media (prefers-color-scheme: dark) { :root { DARK } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main, header, footer { max-width: 1180px; margin: 0 auto; padding: 0 16px; }
header { padding-top: 22px; padding-bottom: 4px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.22rem; margin: 38px 0 4px; padding-top: 10px;
  border-top: 1px solid var(--edge); }
h3 { font-size: 1rem; margin: 0; }
p { margin: 6px 0; max-width: 75ch; }
.lead, .note, figcaption, footer { color: var(--muted); }
.lead { font-size: .93rem; overflow-wrap: anywhere; max-width: none; }
.note { max-width: none; }
.note, figcaption, footer { font-size: .84rem; }
.cards { display: grid; gap: 14px; margin: 14px 0 0;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--edge);
  border-left: 5px solid var(--plain); border-radius: 8px; padding: 13px 16px; }
.card.good { border-left-color: var(--good); }
.card.warn { border-left-color: var(--warn); }
.card h2 { all: unset; display: block; font-size: .9rem; font-weight: 600;
  color: var(--muted); }
.card p { font-size: 1.09rem; font-weight: 650; line-height: 1.35; margin: 3px 0 8px; }
.card ul { margin: 0; padding-left: 18px; font-size: .9rem; line-height: 1.42; }
.card li { margin: 3px 0; overflow-wrap: anywhere; }
.card li::marker { color: var(--muted); }
.figures { display: grid; gap: 14px; margin: 12px 0; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--edge);
  border-radius: 8px; padding: 12px; }
.figure { display: block; width: 100%; max-width: 440px; height: auto;
  margin: 6px auto; }
.scroll { overflow-x: auto; margin: 12px 0 4px; background: var(--card);
  border: 1px solid var(--edge); border-radius: 8px; }
.scroll:focus-visible { outline: 2px solid var(--plain); }
table { border-collapse: collapse; width: 100%; font-size: .88rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 9px 12px 5px; }
th, td { padding: 5px 12px; text-align: right; white-space: nowrap; vertical-align: top;
  border-top: 1px solid var(--edge); }
thead th { border-top: 0; color: var(--muted); font-weight: 600; }
th[scope=row], thead th:first-child { text-align: left; font-weight: 400; }
th[scope=row] { white-space: normal; min-width: 8.5em; position: sticky; left: 0;
  background: var(--card); }
dl { display: grid; grid-template-columns: minmax(6.5em, max-content) minmax(0, 1fr);
  gap: 5px 16px; font-size: .93rem; margin: 10px 0; }
dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--card); border: 1px solid var(--edge);
  border-radius: 8px; padding: 10px 12px; font-size: .84rem; margin: 0; }
summary { cursor: pointer; margin: 8px 0; color: var(--plain); }
li { margin: 4px 0; max-width: 75ch; }
footer { padding-top: 24px; padding-bottom: 30px; }
@media (min-width: 900px) {
  figure:only-child { display: grid; grid-template-columns: 480px 1fr; gap: 0 24px; }
  figure:only-child h3 { grid-column: 1 / 3; }
  figure:only-child figcaption { align-self: center; font-size: .93rem;
    max-width: 60ch; }
}
@media (max-width: 520px) {
  main, header, footer { padding-left: 12px; padding-right: 12px; }
  h1 { font-size: 1.35rem; }
  th, td { padding: 5px 9px; }
  figure { padding: 10px 6px; }
  figure h3, figcaption { padding: 0 6px; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dd { margin-bottom: 7px; }
}
@media print {
  :root { color-scheme: light; LIGHT }
  @page { margin: 14mm; }
  body { background: none; font-size: 10.5pt; }
  main, header, footer { max-width: none; padding: 0; }
  .cards { grid-template-columns: 1fr 1fr; gap: 8px; }
  .figures { grid-template-columns: 1fr 1fr; }
  .card, figure, tr, pre, dl { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  .scroll { overflow: visible; border: 0; }
  table { font-size: 8.5pt; }
  th, td { white-space: normal; padding: 3px 6px; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; }
}
""".replace("LIGHT", LIGHT).replace("DARK", DARK)
