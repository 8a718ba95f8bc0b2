"use strict";
(() => {
  const read = () => { try { return localStorage.getItem("theme") || "auto"; } catch { return "auto"; } };
  const root = document.documentElement;
  const apply = (theme) => { if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme; };
  apply(read());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => { button.textContent = `Theme: ${read()}`; };
    button.hidden = false;
    name();
    button.addEventListener("click", () => {
      const next = { auto: "light", light: "dark", dark: "auto" }[read()];
      try { localStorage.setItem("theme", next); } catch { /* kept for this page only */ }
      apply(next);
      name();
      document.dispatchEvent(new Event("theme"));
    });
  });
})();
