// The MX block explorer: chipmath.quantize for one block of 32 values, on the bits of float32 numbers.
"use strict";

(() => {
  const { put, mark, element, number, plural, start } = window.chipmath;
  const data = window.CHIPMATH_DATA["mx-block"];
  const BLOCK = data.block;

  // --- the model -----------------------------------------------------------------------------------------------------

  const MAGNITUDE = 0x7fffffff; // a float32 without its sign
  const INFINITY = 0x7f800000; // larger magnitudes are NaN
  const FRACTION_BITS = 23;
  const FRACTION = (1 << FRACTION_BITS) - 1;
  const FLOAT32_BIAS = 127;

  const word = new DataView(new ArrayBuffer(8));

  function bitsOf(x) {
    word.setFloat32(0, x);
    return word.getInt32(0);
  }

  /** 2 ** exponent, exactly, for the exponents of a float64 that is not subnormal. */
  function power(exponent) {
    word.setUint32(0, (exponent + 1023) << 20);
    word.setUint32(4, 0);
    return word.getFloat64(0);
  }

  /** Bits of a nonnegative float32 as if its exponent field could go below zero, as chipmath.formats.normalize. */
  function normalize(magnitude) {
    return magnitude > FRACTION ? magnitude : bitsOf(magnitude) - (149 << FRACTION_BITS);
  }

  /** The scale byte for the bits of the largest magnitude. */
  function scaleByte(amax, format, rule) {
    if (amax >= INFINITY) return data.scale.nan;
    const field = (normalize(amax) + format.constants[rule]) >> FRACTION_BITS;
    return Math.min(Math.max(field - FLOAT32_BIAS - format.emax + data.scale.bias, 0), data.scale.max);
  }

  /** Index of the nearest of the format's values, the even one of two as near; beyond the largest, the largest. */
  function nearest(values, magnitude) {
    let [low, high] = [0, values.length - 1];
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] <= magnitude) low = middle;
      else high = middle;
    }
    const [below, above] = [magnitude - values[low], values[high] - magnitude]; // exact, as values have few bits
    if (below === above) return low % 2 ? high : low;
    return below < above ? low : high;
  }

  function encode(x, exponent, format) {
    const code = nearest(format.values, Math.abs(x) * power(-exponent)); // exact in float64
    if (!(bitsOf(x) < 0)) return code;
    return format.float ? code | format.sign : -code & 0xff;
  }

  function decode(code, format) {
    if (!format.float) return (code & format.sign ? code - 2 * format.sign : code) * format.values[1];
    const value = format.values[code & (format.sign - 1)];
    return code & format.sign ? -value : value;
  }

  /** What chipmath.quantize.quantize gives for one block, with the decoded values and what was lost. */
  function quantize(x, formatName, rule) {
    const format = data.formats[formatName];
    const amax = x.reduce((largest, value) => Math.max(largest, bitsOf(value) & MAGNITUDE), 0);
    const scale = scaleByte(amax, format, rule);
    if (scale === data.scale.nan) {
      const none = Array(x.length).fill(false);
      const [codes, values] = [none.map(() => format.nan), none.map(() => NaN)];
      return { amax, scale, codes, values, clipped: none, flushed: none };
    }
    const exponent = scale - data.scale.bias;
    const largest = format.values[format.values.length - 1] * power(exponent);
    const codes = Array.from(x, (value) => encode(value, exponent, format));
    return {
      amax,
      scale,
      codes,
      values: codes.map((code) => Math.fround(decode(code, format) * power(exponent))),
      clipped: Array.from(x, (value) => Math.abs(value) > largest),
      flushed: Array.from(x, (value, index) => value !== 0 && decode(codes[index], format) === 0),
    };
  }

  function sqnrDb(x, values) {
    const noise = values.reduce((sum, value, index) => sum + (x[index] - value) ** 2, 0);
    const signal = x.reduce((sum, value) => sum + value ** 2, 0);
    if (noise === 0) return Infinity;
    return signal ? 10 * Math.log10(signal / noise) : -Infinity;
  }

  // --- words ---------------------------------------------------------------------------------------------------------

  const minus = (text) => text.replaceAll("-", "−");
  const hex = (byte) => `0x${byte.toString(16).toUpperCase().padStart(2, "0")}`;
  const binary = (byte, bits) => byte.toString(2).padStart(bits, "0");

  function short(x, digits = 6) {
    if (!Number.isFinite(x)) return Number.isNaN(x) ? "NaN" : x > 0 ? "∞" : "−∞";
    return minus(Object.is(x, -0) ? "-0" : String(Number(x.toPrecision(digits))));
  }

  function signed(x, format) {
    return x ? minus((x > 0 ? "+" : "") + format(x)) : "0";
  }

  function decibels(db) {
    if (Number.isNaN(db)) return "undefined";
    return Number.isFinite(db) ? minus(`${db.toFixed(1)}\u00a0dB`) : db > 0 ? "none lost" : "−∞\u00a0dB";
  }

  function powerOfTwo(exponent) {
    return `2${[...String(exponent)].map((digit) => (digit === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])).join("")}`;
  }

  /** The shortest decimal that is this float32. */
  function shortest(x) {
    if (Number.isNaN(x)) return "nan";
    if (!Number.isFinite(x)) return x > 0 ? "inf" : "-inf";
    if (Object.is(x, -0)) return "-0";
    for (let digits = 1; digits < 9; digits += 1) {
      const text = String(Number(x.toPrecision(digits)));
      if (Math.fround(Number(text)) === x) return text;
    }
    return String(Number(x.toPrecision(9)));
  }

  /** A float32 from text, null where it is none. */
  function parse(text) {
    if (/^[+-]?nan$/i.test(text)) return NaN;
    if (/^[+-]?inf(inity)?$/i.test(text)) return text.startsWith("-") ? -Infinity : Infinity;
    return /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? Math.fround(Number(text)) : null;
  }

  // --- the chart -----------------------------------------------------------------------------------------------------

  const HEIGHT = 300;
  const MARGIN = { left: 44, right: 6, top: 8, bottom: 34 };
  const SHAPES = {
    rounded: "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    subnormal: "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0-7 0",
    clipped: "M-4-4h8v8h-8z",
    flushed: "M-4.5-4h9l-4.5 8z",
  };
  const SHOWN_BINADES = { above: 8, below: 13, most: 44 };

  /** Magnitudes on a scale of powers of two, over the range that the block's elements can hold. */
  function makeChart(parent, moved) {
    const svg = element("svg:svg", { role: "img", height: HEIGHT });
    const add = (name, attributes) => {
      const node = element(`svg:${name}`, attributes);
      svg.append(node);
      return node;
    };
    const write = (kind, anchor) => add("text", { class: kind, "text-anchor": anchor });
    const [subnormalBand, normalBand] = ["subnormal-range", "normal-range"].map((name) => add("rect", { class: name }));
    const grid = Array.from({ length: 12 }, () => [add("line", { class: "grid" }), write("tick", "end")]);
    const labels = { largest: write("note", "end"), normal: write("note", "end"), smallest: write("note", "end") };
    const places = [1, 8, 16, 24, 32].map((place) => [place, write("tick", "middle")]);
    const title = write("tick", "middle");
    put(title, "value number");
    const chosen = add("line", { class: "chosen" });
    const ticks = Array.from({ length: BLOCK }, () => add("line", { class: "value", x1: -5, x2: 5 }));
    const dots = Array.from({ length: BLOCK }, () => add("path", {}));
    const nothing = write("note", "middle");
    parent.append(svg);

    let drawn = null;

    function draw(shown) {
      drawn = shown;
      const { x, base, place, got, format } = shown;
      const width = Math.max(parent.clientWidth, 260);
      mark(svg, "width", width);
      mark(svg, "viewBox", `0 0 ${width} ${HEIGHT}`);
      const plot = { left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: HEIGHT - MARGIN.bottom };
      const column = (index) => plot.left + ((index + 0.5) * (plot.right - plot.left)) / BLOCK;
      const axis = binades(x, base);
      const level = (magnitude) => {
        const up = (Math.log2(magnitude) - axis.bottom) / (axis.top - axis.bottom);
        return plot.bottom - Math.min(Math.max(up, 0), 1) * (plot.bottom - plot.top);
      };
      drawGrid(plot, axis, level);
      drawRange(plot, level, got, format);
      for (const [label, node] of places) position(node, column(label - 1), plot.bottom + 15, String(label));
      position(title, (plot.left + plot.right) / 2, plot.bottom + 30);
      across(chosen, column(place), plot.top, column(place), plot.bottom);
      const isNan = got.scale === data.scale.nan;
      put(nothing, isNan ? "NaN or infinity makes the whole block NaN" : "");
      position(nothing, (plot.left + plot.right) / 2, (plot.top + plot.bottom) / 2);
      dots.forEach((dot, index) => {
        const kind = kindOf(got, index, format);
        const visible = !isNan && x[index] !== 0;
        mark(dot, "class", visible ? kind : "absent");
        mark(dot, "d", SHAPES[kind]);
        mark(ticks[index], "class", Number.isFinite(x[index]) && x[index] !== 0 ? "value" : "absent");
        if (!visible) return;
        const stored = kind === "flushed" ? plot.bottom - 5 : level(Math.abs(got.values[index]));
        move(dot, column(index), stored);
        move(ticks[index], column(index), level(Math.abs(x[index])));
      });
      mark(svg, "aria-label", describe(shown));
    }

    /** The axis depends on the values before the outlier, as far as it goes: the others then stay where they are. */
    function binades(x, base) {
      const exponents = (values) => values.map((value) => Math.log2(Math.abs(value))).filter(Number.isFinite);
      const finite = exponents(base);
      const top = Math.ceil(Math.max(...finite, -149));
      const now = Math.ceil(Math.max(...exponents(x), -149));
      const end = Math.max(top + SHOWN_BINADES.above, now + 1);
      const bottom = Math.floor(Math.min(...finite, top - SHOWN_BINADES.below)) - 1;
      return { top: end, bottom: Math.max(bottom, end - SHOWN_BINADES.most) };
    }

    function drawGrid(plot, axis, level) {
      const step = axis.top - axis.bottom > 32 ? 8 : 4;
      const first = Math.ceil(axis.bottom / step) * step;
      grid.forEach(([line, text], index) => {
        const exponent = first + index * step;
        const visible = exponent <= axis.top;
        mark(line, "class", visible ? "grid" : "absent");
        const y = level(2 ** exponent).toFixed(1);
        across(line, plot.left, y, plot.right, y);
        position(text, plot.left - 6, Number(y) + 4, visible ? powerOfTwo(exponent) : "");
      });
    }

    function drawRange(plot, level, got, format) {
      const isNan = got.scale === data.scale.nan;
      const scale = isNan ? 1 : power(got.scale - data.scale.bias);
      const edges = [format.values.at(-1), format.min_normal, format.values[1]];
      const [largest, normal, smallest] = edges.map((value) => level(value * scale));
      band(normalBand, plot, largest, normal, isNan);
      band(subnormalBand, plot, normal, smallest, isNan);
      const note = (node, y, text) => position(node, plot.right - 4, y, isNan ? "" : text);
      note(labels.largest, largest + 13, "largest");
      const subnormals = smallest > normal && normal < plot.bottom;
      note(labels.normal, normal - 4, subnormals && normal - largest > 30 ? "smallest normal" : "");
      note(labels.smallest, smallest - 4, smallest < plot.bottom && smallest - normal > 14 ? "smallest" : "");
    }

    function band(node, plot, top, bottom, isNan) {
      mark(node, "x", plot.left);
      mark(node, "width", plot.right - plot.left);
      mark(node, "y", top.toFixed(1));
      mark(node, "height", isNan ? 0 : Math.max(bottom - top, 0).toFixed(1));
    }

    function describe({ x, got, format, name }) {
      if (got.scale === data.scale.nan) return "Chart without values: the block is NaN.";
      const kinds = x.map((value, index) => (value === 0 ? "zero" : kindOf(got, index, format)));
      const many = (kind) => kinds.filter((each) => each === kind).length;
      return (
        `Chart of the ${BLOCK} magnitudes over the range of ${name} under this scale: ` +
        `${many("rounded")} stored with all bits, ${many("subnormal")} with fewer, ` +
        `${many("clipped")} clipped, ${many("flushed")} flushed to zero.`
      );
    }

    // The mouse may drag any value up or down; fingers scroll the page and use the slider, as the keyboard does.
    let held = null;
    svg.addEventListener("pointerdown", (event) => {
      const box = svg.getBoundingClientRect();
      const column = ((event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right)) * BLOCK;
      if (column < 0 || column >= BLOCK) return;
      const place = Math.floor(column);
      const boost = place === drawn.place ? drawn.boost : 0;
      held = event.pointerType === "mouse" ? { y: event.clientY, boost } : null;
      if (held) svg.setPointerCapture(event.pointerId);
      moved(place, boost);
    });
    svg.addEventListener("pointermove", (event) => {
      if (!held) return;
      const binade = (HEIGHT - MARGIN.top - MARGIN.bottom) / 24;
      moved(drawn.place, held.boost + Math.round((held.y - event.clientY) / binade));
    });
    for (const end of ["pointerup", "pointercancel"]) svg.addEventListener(end, () => (held = null));
    new ResizeObserver(() => drawn && draw(drawn)).observe(parent);
    return draw;
  }

  function kindOf(got, index, format) {
    if (got.clipped[index]) return "clipped";
    if (got.flushed[index]) return "flushed";
    return Math.abs(decode(got.codes[index], format)) < format.min_normal ? "subnormal" : "rounded";
  }

  function move(node, x, y) {
    mark(node, "transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
  }

  function across(line, x1, y1, x2, y2) {
    for (const [name, value] of Object.entries({ x1, y1, x2, y2 })) mark(line, name, value);
  }

  function position(node, x, y, text) {
    mark(node, "x", Number(x).toFixed(1));
    mark(node, "y", Number(y).toFixed(1));
    if (text !== undefined) put(node, text);
  }

  // --- the page ------------------------------------------------------------------------------------------------------

  const OUTLIER_BOOST = 10;

  function startOne(root, changed) {
    const find = (selector) => root.querySelector(selector);
    const names = ["format", "rule", "law", "draw", "values", "place", "boost"];
    const fields = Object.fromEntries(names.map((name) => [name, find(`[name=${name}]`)]));
    const facts = {};
    for (const node of root.querySelectorAll("[data-fact]")) facts[node.dataset.fact] = node;
    const table = find(".explorer-first table");
    const rows = [...table.tBodies[0].rows].map(rowParts);
    const draw = makeChart(find(".explorer-chart"), (place, boost) => {
      fields.place.value = place + 1;
      fields.boost.value = boost;
      update();
    });
    let valid = null;

    fields.law.addEventListener("change", () => {
      fields.boost.value = fields.law.value === "outlier" ? OUTLIER_BOOST : 0;
      drawn();
      update();
    });
    fields.draw.addEventListener("change", () => {
      if (fields.law.value === "typed") fields.law.value = "gaussian";
      drawn();
      update();
    });
    fields.values.addEventListener("input", () => {
      fields.law.value = "typed";
      update();
    });
    for (const name of ["format", "rule", "place"]) fields[name].addEventListener("change", () => update());
    fields.boost.addEventListener("input", () => update());

    function drawn() {
      const law = fields.law.value === "outlier" ? "gaussian" : fields.law.value;
      if (law !== "typed") fields.values.value = data.draws[law][fields.draw.value - 1].join(", ");
    }

    function update(problems = [], byReader = true) {
      const tokens = fields.values.value.split(/[\s,;]+/).filter(Boolean);
      const base = tokens.map(parse);
      const wrong = tokens.filter((_, index) => base[index] === null).map((token) => `“${token}” is not a number.`);
      if (tokens.length !== BLOCK) wrong.push(`${plural(tokens.length, "value")}: a block has ${BLOCK}.`);
      const kept = wrong.length ? ["The result stays that of the last block that made sense."] : [];
      put(find(".explorer-error"), [...problems, ...wrong, ...kept].join(" "));
      mark(fields.values, "aria-invalid", wrong.length ? "true" : null);
      mark(fields.values, "aria-errormessage", wrong.length ? find(".explorer-error").id : null);
      mark(root, "data-stale", wrong.length ? "true" : null);
      if (wrong.length) return;
      const [place, boost] = [fields.place.value - 1, Number(fields.boost.value)];
      const x = base.map((value, index) => (index === place ? Math.fround(value * power(boost)) : value));
      const [format, rule, law, draw] = ["format", "rule", "law", "draw"].map((name) => fields[name].value);
      valid = { format, rule, law, draw, base, place, boost };
      render(x);
      if (byReader) changed();
    }

    function render(x) {
      const { format: name, rule, base, place, boost } = valid;
      const format = data.formats[name];
      const got = quantize(x, name, rule);
      const db = sqnrDb(x, got.values);
      const without = (list) => list.filter((_, index) => index !== place);
      const [clipped, flushed] = [got.clipped, got.flushed].map((list) => list.filter(Boolean).length);
      const isNan = got.scale === data.scale.nan;
      const exponent = got.scale - data.scale.bias;
      put(find("output"), `× ${number(2 ** boost)}`);
      const scale = isNan ? "NaN" : powerOfTwo(exponent);
      const scaled = (value) => short(value * power(exponent), 3);
      const lost = `${clipped} clipped, ${flushed} flushed to zero`;
      put(find(".explorer-answer"), `Scale ${scale}; signal to noise ${decibels(db)}; ${lost}.`);
      put(facts.amax, largest(got.amax, x));
      put(facts.scale, `${hex(got.scale)} = ${binary(got.scale, 8)}`);
      put(facts.range, isNan ? "none" : `${scaled(format.values[1])} to ${scaled(format.values.at(-1))}`);
      put(facts.place, String(place + 1));
      put(facts.others, decibels(sqnrDb(without(x), without(got.values))));
      put(table.caption, `${name}, ${rule}: scale byte ${hex(got.scale)} is ${scale}; signal to noise ${decibels(db)}`);
      rows.forEach((row, index) => renderRow(row, x[index], got, index, format));
      rows.forEach((row, index) => mark(row.row, "aria-current", boost && index === place ? "true" : null));
      draw({ x, base, place, boost, got, format, name });
    }

    function largest(amax, x) {
      const value = Math.max(...x.map(Math.abs));
      if (amax >= INFINITY || amax === 0) return short(value);
      const exponent = (normalize(amax) >> FRACTION_BITS) - FLOAT32_BIAS;
      return `${short(value)} = ${short(value * power(-exponent), 4)} × ${powerOfTwo(exponent)}`;
    }

    function renderRow(row, x, got, index, format) {
      const value = got.values[index];
      const error = value - x;
      const bits = binary(got.codes[index], format.bits);
      let from = 0;
      format.fields.forEach((width, field) => {
        put(row.bits[field], bits.slice(from, from + width));
        from += width;
      });
      put(row.value, short(x));
      put(row.hex, hex(got.codes[index]));
      put(row.decoded, short(value));
      put(row.error, Number.isNaN(error) ? "–" : signed(error, (e) => String(Number(e.toPrecision(2)))));
      const percent = (100 * error) / Math.abs(x || 1); // where x is 0, so is the error
      put(row.relative, Number.isNaN(error) ? "–" : `${signed(percent, (e) => e.toFixed(1))}\u00a0%`);
      put(row.note, got.clipped[index] ? "clipped" : got.flushed[index] ? "flushed" : "");
    }

    /** The state as the address holds it: a draw by its number, typed values one by one. */
    function read() {
      const state = { f: valid.format, r: valid.rule };
      if (valid.law === "typed") state.v = valid.base.map(shortest).join(",");
      else Object.assign(state, { law: valid.law, draw: valid.draw });
      if (valid.boost) Object.assign(state, { at: valid.place + 1, by: valid.boost });
      return state;
    }

    function write(state) {
      const problems = [];
      const choose = (field, key, value) => {
        if ([...field.options].some((option) => option.value === value)) field.value = value;
        else problems.push(`The link's “${key}=${value}” is no choice of “${field.labels[0].textContent}”.`);
      };
      const start = data.start;
      const law = state.v === undefined ? (state.law ?? start.law) : "typed";
      choose(fields.format, "f", state.f ?? start.format);
      choose(fields.rule, "r", state.r ?? start.rule);
      choose(fields.law, "law", law);
      choose(fields.draw, "draw", state.draw ?? String(start.draw));
      choose(fields.place, "at", state.at ?? "1");
      const boost = state.by ?? "0";
      if (/^\d+$/.test(boost) && Number(boost) <= Number(fields.boost.max)) fields.boost.value = boost;
      else problems.push(`The link's “by=${boost}” is not a whole number from 0 to ${fields.boost.max}.`);
      const unknown = Object.keys(state).filter((key) => !["f", "r", "law", "draw", "v", "at", "by"].includes(key));
      problems.push(...unknown.map((key) => `The link's “${key}=${state[key]}” is no input of this page.`));
      if (state.v !== undefined) fields.values.value = state.v.replaceAll(",", ", ");
      else drawn();
      update(problems, false);
    }

    write({});
    return { read, write };
  }

  function rowParts(row) {
    const [, value, code, hexCell, decoded, error, relative, note] = row.cells;
    return { row, value, bits: [...code.children], hex: hexCell, decoded, error, relative, note };
  }

  Object.assign(window.chipmath, { quantize, sqnrDb });
  start("mx-block", startOne);
})();
