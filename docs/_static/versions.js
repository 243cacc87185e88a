/* The switcher of versions. The page lists those known when it was built; a site that serves several versions beside
   each other has the file versions.json above them, which lists all of them. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const select = document.getElementById("versions");
  if (!select) return;
  const above = select.dataset.root + "../";
  select.addEventListener("change", () => { window.location.href = above + select.value; });
  if (!window.location.protocol.startsWith("http")) return;
  fetch(above + "versions.json")
    .then((answer) => (answer.ok ? answer.json() : []))
    .then((known) => {
      for (const each of known) {
        if (![...select.options].some((option) => option.text === each.version)) {
          select.add(new Option(each.version, each.path));
        }
      }
    })
    .catch(() => {});
});
