// Of the panels of each .choice one is shown, by a list in front of them. Without this script all of them are.
"use strict";

document.querySelectorAll(".choice").forEach((choice, number) => {
  const panels = Array.from(choice.children);
  if (panels.length < 2) return;
  const select = document.createElement("select");
  select.append(...panels.map((panel) => new Option(panel.dataset.name)));
  const show = () => panels.forEach((panel, i) => { panel.hidden = i !== select.selectedIndex; });
  select.addEventListener("change", show);
  select.id = `choice-${number}`;
  const label = document.createElement("label");
  label.htmlFor = select.id;
  label.textContent = choice.dataset.label;
  const bar = document.createElement("div");
  bar.className = "controls";
  bar.append(document.createElement("div"));
  bar.firstChild.append(label, select);
  choice.prepend(bar);
  show();
});
