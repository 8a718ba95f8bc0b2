"use strict";
(() => {
  const resolve = (value, style) => {
    if (typeof value === "string") {
      const found = /^var\((--[a-z]+)\)$/.exec(value);
      return found ? style.getPropertyValue(found[1]).trim() : value;
    }
    if (Array.isArray(value)) return value.map((one) => resolve(one, style));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, resolve(one, style)]));
    }
    return value;
  };
  const draw = () => {
    const style = getComputedStyle(document.documentElement);
    for (const place of document.querySelectorAll("[data-chart]")) {
      const source = document.getElementById(place.dataset.chart);
      if (!source || !window.Plotly) continue;
      const chart = resolve(JSON.parse(source.textContent), style);
      place.classList.add("drawn");
      Plotly.react(place, chart.data, chart.layout, { responsive: true, displaylogo: false, displayModeBar: false });
    }
  };
  draw();
  for (const event of ["theme", "live"]) document.addEventListener(event, draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
