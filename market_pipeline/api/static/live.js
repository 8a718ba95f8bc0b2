"use strict";
(() => {
  const status = document.getElementById("status");
  const pause = document.getElementById("pause");
  const seconds = Number(document.body.dataset.refreshSeconds);
  let tag = `W/"${document.body.dataset.digest}"`;
  let paused = false;
  const say = (text) => { if (status.textContent !== text) status.textContent = text; };
  const read = (region) => new Map([...region.querySelectorAll("[data-key]")].map((one) => [one.dataset.key, one.value]));
  const replace = (old, fresh) => {
    const before = read(old);
    const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    old.replaceChildren(...fresh.childNodes);
    for (const one of old.querySelectorAll("[data-key]")) {
      if (before.has(one.dataset.key) && before.get(one.dataset.key) !== one.value) one.classList.add("changed");
    }
    if (focused) [...old.querySelectorAll("a")].find((one) => one.getAttribute("href") === focused)?.focus();
  };
  const refresh = async () => {
    if (paused || document.hidden) return;
    try {
      const answer = await fetch(location.href, { cache: "no-store", headers: { "If-None-Match": tag } });
      if (answer.status === 304) return;
      if (!answer.ok) throw new Error(String(answer.status));
      tag = answer.headers.get("ETag");
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      let changes = 0;
      for (const old of document.querySelectorAll("[data-live]")) {
        const next = fresh.querySelector(`[data-live="${old.dataset.live}"]`);
        if (next && next.innerHTML !== old.innerHTML) { replace(old, next); changes += 1; }
      }
      if (!changes) return;
      document.dispatchEvent(new Event("live"));
      say(`Updated ${new Date().toISOString().slice(11, 19)} UTC`);
    } catch { say("No answer: this page may be out of date"); }
  };
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    say(paused ? "Paused" : "Live");
    if (!paused) refresh();
  });
  setInterval(refresh, seconds * 1000);
})();
