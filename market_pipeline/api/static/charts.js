"use strict";
// Draws the charts of a page with Lightweight Charts, and lays a mark over each noted span of bars.
(() => {
  const FORMATS = {
    percent: (value) => `${(value * 100).toFixed(1)} %`,
    compact: (value) => new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 }).format(value),
    price: (value) => new Intl.NumberFormat("en", value >= 1000 ? { maximumFractionDigits: 2 } : { maximumSignificantDigits: 6 }).format(value),
  };
  const MINIMUM = 4;
  const readColours = () => {
    const style = getComputedStyle(document.documentElement);
    return (name, alpha = "") => style.getPropertyValue(`--${name}`).trim() + alpha;
  };
  const utc = (seconds, intraday) => {
    const text = new Date(seconds * 1000).toISOString();
    return intraday ? `${text.slice(0, 10)} ${text.slice(11, 16)} UTC` : text.slice(0, 10);
  };
  const findFirst = (times, wanted) => {
    let low = 0, high = times.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (times[middle] < wanted) low = middle + 1; else high = middle;
    }
    return low;
  };

  class Chart {
    constructor(place) {
      this.place = place;
      this.source = document.getElementById(place.dataset.chart);
      this.legend = document.getElementById(`${place.id}-legend`);
      this.canvas = place.appendChild(document.createElement("div"));
      this.canvas.className = "canvas";
      this.layer = place.appendChild(document.createElement("div"));
      this.layer.className = "marks";
      place.classList.add("drawn");
      this.chart = LightweightCharts.createChart(this.canvas, {
        autoSize: true,
        handleScroll: { vertTouchDrag: false },
        timeScale: { minBarSpacing: 0.02, rightOffset: 0, fixLeftEdge: true, fixRightEdge: true },
        rightPriceScale: { minimumWidth: 64 },
      });
      this.chart.timeScale().subscribeVisibleLogicalRangeChange(() => this.queueMarks());
      this.chart.timeScale().subscribeSizeChange(() => this.queueMarks());
      this.chart.subscribeCrosshairMove((at) => this.describe(at.logical === undefined ? null : Math.round(at.logical)));
      const log = document.getElementById(`${place.id}-log`);
      if (log) {
        log.hidden = false;
        log.addEventListener("click", () => {
          const on = log.getAttribute("aria-pressed") !== "true";
          log.setAttribute("aria-pressed", String(on));
          this.chart.priceScale("right", 0).applyOptions({ mode: on ? 1 : 0 });
          this.queueMarks();
        });
      }
    }

    read() {
      this.spec = JSON.parse(this.source.textContent);
      if (!this.series) {
        this.series = this.spec.series.map((one) => this.chart.addSeries(this.kind(one), {}, one.pane));
        this.chart.panes().forEach((pane, at) => pane.setStretchFactor(at ? 1 : 4));
        this.names = this.spec.series.map((one) => {
          const name = this.layer.appendChild(document.createElement("span"));
          name.className = "pane";
          name.textContent = one.name;
          return name;
        });
      }
      this.series.forEach((one, at) => one.setData(this.points(this.spec.series[at])));
      this.drawMarks();
    }

    kind(one) {
      return { candles: LightweightCharts.CandlestickSeries, histogram: LightweightCharts.HistogramSeries,
        drawdown: LightweightCharts.BaselineSeries, line: LightweightCharts.LineSeries }[one.type];
    }

    points(one) {
      const { times } = this.spec;
      if (one.type === "candles") {
        const hollow = this.colour("surface");
        return times.map((time, at) => one.close[at] === null ? { time } : {
          time, open: one.open[at], high: one.high[at], low: one.low[at], close: one.close[at],
          ...(one.final[at] ? {} : { color: hollow, wickColor: this.colour("muted"), borderColor: this.colour("muted") }),
        });
      }
      // A line joins what lies on both sides of a gap; the part over the gap is not to be seen.
      const none = "rgba(0,0,0,0)";
      const unseen = { line: { color: none }, histogram: {},
        drawdown: { bottomLineColor: none, bottomFillColor1: none, bottomFillColor2: none } }[one.type];
      const { values } = one;
      return times.map((time, at) => {
        if (values[at] === null) return { time };
        return { time, value: values[at], ...(values[at + 1] === null ? unseen : {}) };
      });
    }

    style() {
      this.colour = readColours();
      const c = this.colour;
      const line = { color: c("line") };
      this.chart.applyOptions({
        layout: { background: { color: c("surface") }, textColor: c("muted"), fontSize: 11, fontFamily: "system-ui, sans-serif",
          panes: { separatorColor: c("line"), enableResize: false } },
        grid: { vertLines: line, horzLines: line },
        crosshair: { mode: 0, vertLine: { labelBackgroundColor: c("muted") }, horzLine: { labelBackgroundColor: c("muted") } },
        timeScale: { borderColor: c("line"), timeVisible: false },
        rightPriceScale: { borderColor: c("line") },
      });
      this.read();
      const spec = this.spec;
      this.chart.applyOptions({ timeScale: { timeVisible: spec.intraday },
        localization: { timeFormatter: (time) => utc(time, spec.intraday) } });
      // Room for the lanes of marks below the prices.
      if (spec.marks.length) this.series[0].priceScale().applyOptions({ scaleMargins: { top: 0.06, bottom: 0.16 } });
      const plain = { priceLineVisible: false, lastValueVisible: false };
      this.series.forEach((series, at) => {
        const one = spec.series[at];
        const format = { priceFormat: { type: "custom", minMove: 1e-12, formatter: FORMATS[one.format] } };
        series.applyOptions({ ...plain, ...format, ...{
          candles: { upColor: c("surface"), borderUpColor: c("up"), wickUpColor: c("up"),
            downColor: c("down"), borderDownColor: c("down"), wickDownColor: c("down"), lastValueVisible: true },
          histogram: { color: c("volume") },
          line: { color: c("accent"), lineWidth: 1 },
          drawdown: { topLineColor: c("down"), topFillColor1: "rgba(0,0,0,0)", topFillColor2: "rgba(0,0,0,0)",
            bottomLineColor: c("down"), bottomFillColor1: c("down", "55"), bottomFillColor2: c("down", "11"), lineWidth: 1 },
        }[one.type] });
      });
      this.describe(null);
    }

    drawMarks() {
      const { times, seconds, marks } = this.spec;
      for (const old of this.layer.querySelectorAll(".mark")) old.remove();
      this.marks = marks.map((mark) => {
        const first = findFirst(times, mark.start + 1) - 1;
        // A mark that begins between two bars belongs to the bar that it lies in, or to the next.
        const from = first >= 0 && times[first] + seconds > mark.start ? first : first + 1;
        const until = Math.max(findFirst(times, mark.end) - 1, from);
        const last = times.length - 1;
        const shown = this.layer.appendChild(document.createElement("span"));
        shown.className = `mark ${mark.kind}`;
        shown.dataset.text = mark.text;
        return { ...mark, from: Math.min(from, last), until: Math.min(until, last), shown };
      });
      this.queueMarks();
    }

    // The library makes its panes in the next frame.
    queueMarks() {
      cancelAnimationFrame(this.queued);
      this.queued = requestAnimationFrame(() => {
        if (this.chart.panes().every((pane) => pane.getHTMLElement())) this.placeMarks();
        else this.queueMarks();
      });
    }

    placeMarks() {
      if (!this.marks) return;
      const scale = this.chart.timeScale();
      const width = scale.width(), half = scale.options().barSpacing / 2;
      let top = 0;
      const tops = this.chart.panes().map((_, at) => {
        const before = top;
        top += this.chart.paneSize(at).height + 1;
        return before;
      });
      this.names.forEach((name, at) => { name.style.top = `${tops[this.spec.series[at].pane] + 4}px`; });
      this.layer.style.setProperty("--pane", `${this.chart.paneSize(0).height}px`);
      for (const mark of this.marks) {
        const left = scale.logicalToCoordinate(mark.from) - half;
        const right = scale.logicalToCoordinate(mark.until) + half;
        const wide = Math.max(right - left, MINIMUM);
        const x = Math.min(Math.max(Math.min(left, (left + right - wide) / 2), 0), width - MINIMUM);
        const end = Math.min((left + right + wide) / 2, width);
        mark.shown.hidden = right < 0 || left > width;
        mark.shown.style.left = `${x}px`;
        mark.shown.style.width = `${Math.max(end - x, MINIMUM)}px`;
      }
    }

    describe(logical) {
      if (!this.legend) return;
      const { times, series, intraday, marks } = this.spec;
      const price = series[0];
      const values = price.close || price.values;
      let at = logical;
      if (at === null) for (at = times.length - 1; at > 0 && values[at] === null; at -= 1);
      at = Math.min(Math.max(at, 0), times.length - 1);
      const said = [utc(times[at], intraday)];
      if (values[at] === null) said.push("no bar");
      else if (price.close) for (const [short, name] of [["O", "open"], ["H", "high"], ["L", "low"], ["C", "close"]]) said.push(`${short} ${FORMATS.price(price[name][at])}`);
      else said.push(FORMATS.price(values[at]));
      const volume = series.find((one) => one.type === "histogram");
      if (volume && volume.values[at] !== null) said.push(`V ${FORMATS.compact(volume.values[at])}`);
      let before = at - 1;
      while (before >= 0 && values[before] === null) before -= 1;
      if (values[at] !== null && before >= 0) {
        const change = values[at] / values[before] - 1;
        said.push(`${change < 0 ? "−" : "+"}${Math.abs(change * 100).toFixed(2)} %`);
      }
      for (const one of this.marks || []) if (one.from <= at && at <= one.until) said.push(`${one.kind}: ${one.text}`);
      this.legend.textContent = said.join("  ");
    }
  }

  const charts = [];
  const draw = () => charts.forEach((one) => one.style());
  for (const place of document.querySelectorAll("[data-chart]")) {
    if (window.LightweightCharts && document.getElementById(place.dataset.chart)) charts.push(new Chart(place));
  }
  draw();
  charts.forEach((one) => one.chart.timeScale().fitContent());
  document.addEventListener("theme", draw);
  document.addEventListener("live", (event) => {
    for (const one of charts) {
      const fresh = document.getElementById(one.place.dataset.chart);
      if (fresh && fresh.textContent !== one.source.textContent) { one.source = fresh; one.style(); }
    }
    event.stopPropagation();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
