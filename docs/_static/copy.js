/* A button on every block of code that copies it; lines of commands, which are long, are set apart where they wrap. */
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  for (const pre of document.querySelectorAll(".highlight-bash pre, .highlight-sh pre")) {
    const lines = pre.innerHTML.split("\n");
    pre.innerHTML = lines.map((line) => line && `<span class="line">${line}</span>`).join("\n");
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
