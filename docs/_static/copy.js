/* Blocks of code: a button that copies each; lines of commands, which are long, are set apart where they wrap. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  for (const code of document.querySelectorAll(".highlight-bash pre, .highlight-sh pre, code.literal")) {
    keepFlagsWhole(code);
  }
  for (const pre of document.querySelectorAll(".highlight-bash pre, .highlight-sh pre")) {
    const lines = pre.innerHTML.split("\n");
    pre.innerHTML = lines.map((line) => line && `<span class="command-line">${line}</span>`).join("\n");
  }
  if (!navigator.clipboard) return;
  for (const block of document.querySelectorAll("div.highlight")) {
    const button = document.createElement("button");
    button.className = "copy";
    button.textContent = "copy";
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(block.querySelector("pre").textContent);
      button.textContent = "copied";
      setTimeout(() => { button.textContent = "copy"; }, 1500);
    });
    block.append(button);
  }
});

/* A browser breaks lines after hyphens, also within "--out". */
function keepFlagsWhole(code) {
  const texts = [], walker = document.createTreeWalker(code, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) texts.push(walker.currentNode);
  for (const text of texts) {
    const pieces = text.data.split(/((?<!\S)--?[A-Za-z][\w.-]*)/);
    if (pieces.length === 1) continue;
    text.replaceWith(...pieces.map((piece, i) => {
      if (i % 2 === 0) return piece;
      const flag = document.createElement("span");
      flag.className = "flag";
      flag.textContent = piece;
      return flag;
    }));
  }
}
