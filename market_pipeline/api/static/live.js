"use strict";
// Keeps a page up to date: what changed on the server replaces its region, and nothing else moves.
(() => {
  const status = document.getElementById("status");
  const pause = document.getElementById("pause");
  let tag = `W/"${document.body.dataset.digest}"`;
  let paused = false, timer = 0, typed = 0;
  const say = (text) => { if (status.textContent !== text) status.textContent = text; };
  const list = (from) => [...from.querySelectorAll("[data-live]")];
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
  const show = (fresh) => {
    document.body.dataset.refreshSeconds = fresh.body.dataset.refreshSeconds;
    const names = (from) => list(from).map((one) => one.dataset.live).join();
    if (names(fresh) !== names(document)) {
      document.getElementById("main").replaceChildren(...fresh.getElementById("main").childNodes);
      return true;
    }
    let changes = 0;
    for (const old of list(document)) {
      const next = fresh.querySelector(`[data-live="${old.dataset.live}"]`);
      if (next.innerHTML !== old.innerHTML) { replace(old, next); changes += 1; }
    }
    return changes > 0;
  };
  const refresh = async (isTyped) => {
    if (!isTyped && (paused || document.hidden)) return;
    const address = location.href;
    try {
      const answer = await fetch(address, { cache: "no-store", headers: { Accept: "text/html", ...(isTyped ? {} : { "If-None-Match": tag }) } });
      if (answer.status === 304) { say(""); return; }
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (address !== location.href) return; // Something else was typed meanwhile.
      tag = answer.headers.get("ETag");
      if (!show(fresh)) return;
      document.dispatchEvent(new Event("live"));
      if (!isTyped) say(`Updated ${new Date().toISOString().slice(11, 19)} UTC`);
    } catch { say("No answer: this page may be out of date"); }
  };
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(async () => { await refresh(false); wait(); }, Number(document.body.dataset.refreshSeconds) * 1000);
  };
  // A list is filtered by the server while one types, since it may have more pages than this one.
  for (const form of document.querySelectorAll("form[data-filter]")) {
    form.addEventListener("input", () => {
      clearTimeout(typed);
      typed = setTimeout(() => {
        const given = [...new FormData(form)].filter(([, value]) => value);
        const search = new URLSearchParams(given).toString();
        history.replaceState(null, "", location.pathname + (search && `?${search}`));
        refresh(true);
      }, 150);
    });
  }
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    say(paused ? "Paused" : "Live");
    if (!paused) refresh(false);
  });
  wait();
})();
