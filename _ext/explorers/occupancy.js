// The occupancy explorer. It holds no rule of occupancy: the steps of every rule come with the data, from Python.
"use strict";

(() => {
  const { put, mark, show, element, number, plural, mapped } = window.chipmath;
  const data = window.CHIPMATH_DATA.occupancy;
  const KIB = 1024;

  // --- the model's rules, worked off ---------------------------------------------------------------------------------

  const OPERATIONS = {
    "+": (a, b) => a + b,
    "-": (a, b) => a - b,
    "*": (a, b) => a * b,
    "//": (a, b) => Math.floor(a / b), // exact: every number here is a whole one below 2 ** 53
    "&": (a, b) => a & b,
    "==": (a, b) => Number(a === b),
    "<": (a, b) => Number(a < b),
    "<=": (a, b) => Number(a <= b),
    ">": (a, b) => Number(a > b),
    ">=": (a, b) => Number(a >= b),
  };

  /** An operand is a number, or the name of an argument or of an earlier step. */
  function read(values, operand) {
    return typeof operand === "number" ? operand : values[operand];
  }

  function run(chip, launch) {
    const values = { ...data.defaults, ...launch };
    chip.steps.forEach(([operation, a, b], index) => {
      values[`t${index}`] = OPERATIONS[operation](read(values, a), read(values, b));
    });
    return values;
  }

  function fill(text, values, format = String) {
    return text.replace(/\{(\w+)\}/g, (_, name) => format(values[name]));
  }

  /** What chipmath.occupancy.occupancy returns for this launch; RangeError where an argument makes no sense. */
  function occupancy(arch, launch) {
    const chip = data.chips[arch];
    const values = run(chip, launch);
    for (const [name, holds, why] of chip.demands) {
      if (!values[holds]) throw new RangeError(`${name}=${launch[name]}: ${why}`);
    }
    const limits = {};
    for (const [name, operand] of Object.entries(chip.limits)) {
      const groups = read(values, operand);
      if (groups < data.unlimited) limits[name] = groups;
    }
    const groups = Math.min(...Object.values(limits));
    const waves = groups * read(values, chip.waves);
    const reasons = chip.reasons.filter(([applies]) => values[applies]).map(([, text]) => fill(text, values));
    return {
      groups,
      waves,
      fraction: waves / chip.max_waves,
      limits,
      limiters: Object.keys(limits).filter((name) => limits[name] === groups),
      allocated: mapped(chip.allocated, (operand) => read(values, operand)),
      charges: mapped(chip.charges, (text) => fill(text, values, number)),
      reason: groups ? null : reasons.join("; "),
    };
  }

  /** The launch on any chip: arguments that its vendor does not have are left out. */
  function launchOn(arch, launch) {
    const labels = data.labels[data.chips[arch].vendor];
    return occupancy(arch, Object.fromEntries(Object.entries(launch).filter(([name]) => name in labels)));
  }

  /** The nearest value of one argument, in one direction, at which another number of waves is resident; or null. */
  function cliff(arch, launch, name, direction) {
    const { min, last, search_step: step } = data.chips[arch].inputs[name];
    const now = occupancy(arch, launch).waves;
    const differs = (value) => occupancy(arch, { ...launch, [name]: value }).waves !== now;
    const start = launch[name];
    const end = direction < 0 ? min : last;
    if ((end - start) * direction <= 0) return null;
    if (step > 1) {
      const whole = direction < 0 ? Math.ceil(start / step) - 1 : Math.floor(start / step) + 1;
      for (let value = whole * step; (end - value) * direction >= 0; value += direction * step) {
        if (differs(value)) return value;
      }
      return null;
    }
    // Asking for more of anything but threads never admits more groups, so a change stays: halve the distance.
    if (!differs(end)) return null;
    let [near, far] = [start, end];
    while (Math.abs(far - near) > 1) {
      const middle = Math.floor((near + far) / 2);
      if (differs(middle)) far = middle;
      else near = middle;
    }
    return far;
  }

  // --- words ---------------------------------------------------------------------------------------------------------

  const percent = (fraction) => `${(100 * fraction).toFixed(1)}\u00a0%`;

  function kibibytes(bytes) {
    return bytes % KIB ? `${number(bytes)}\u00a0bytes` : `${number(bytes / KIB)}\u00a0KiB`;
  }

  /** A whole number from text; sizes may be given in KiB. NaN where it is none. */
  function count(text, name) {
    const [, digits, unit] = /^\s*(\d+(?:\.\d+)?)\s*(k|kb|kib)?\s*$/i.exec(text) ?? [];
    if (digits === undefined || (unit && name !== "shared_bytes")) return NaN;
    const value = Number(digits) * (unit ? KIB : 1);
    return Number.isInteger(value) && value <= data.max_count ? value : NaN;
  }

  function change(now, then, words) {
    if (!then.groups) return "cannot launch";
    const more = then.groups - now.groups;
    if (!now.groups) return `launches: ${plural(then.groups, words.group)}, ${percent(then.fraction)}`;
    const groups = more ? `${more > 0 ? "+" : ""}${plural(more, words.group)}` : `as many ${words.group}s`;
    return `${groups}, ${percent(then.fraction)}`;
  }

  // --- the page ------------------------------------------------------------------------------------------------------

  function start(root, changed) {
    const find = (selector) => root.querySelector(selector);
    const chipField = find("select[name=arch]");
    const fields = Object.fromEntries(data.arguments.map((name) => [name, field(name)]));
    const bars = tableRows(find(".explorer-bars"), barRow, data.resources);
    const cliffs = tableRows(find(".explorer-cliffs"), cliffRow, data.arguments);
    const slots = Array.from({ length: 64 }, () => element("span"));
    find(".explorer-slots").append(...slots);
    let valid = null; // the last state that made sense, which the page shows

    function field(name) {
      const text = find(`input[name=${name}]`);
      const slider = find(`[data-for=${name}]`);
      text.addEventListener("input", () => update());
      slider.addEventListener("input", () => {
        text.value = slider.value;
        update();
      });
      return { text, slider, row: text.closest("p"), label: text.closest("p").querySelector("label") };
    }

    chipField.addEventListener("change", () => update());

    /** Show the result of what the fields hold, or what is wrong with it. */
    function update(problems = [], byReader = true) {
      const arch = chipField.value;
      const { vendor, inputs } = data.chips[arch];
      const labels = data.labels[vendor];
      const launch = {};
      const wrong = {};
      for (const [name, { text, slider, row, label }] of Object.entries(fields)) {
        show(row, name in labels);
        if (!(name in labels)) continue;
        put(label, labels[name]);
        for (const bound of ["min", "max", "step"]) mark(slider, bound, inputs[name][bound]);
        mark(slider, "aria-label", `${labels[name]}, slider`);
        launch[name] = count(text.value, name);
        if (Number.isNaN(launch[name])) {
          const most = number(data.max_count);
          wrong[name] = `${labels[name]}: “${text.value}” is not a whole number from 0 to ${most}.`;
        } else if (Number(slider.value) !== launch[name]) slider.value = launch[name];
      }
      for (const [name, holds, why] of Object.keys(wrong).length ? [] : data.chips[arch].demands) {
        if (!run(data.chips[arch], launch)[holds]) wrong[name] = `${labels[name]}: “${launch[name]}”: ${why}.`;
      }
      for (const [name, { text }] of Object.entries(fields)) {
        mark(text, "aria-invalid", name in wrong ? "true" : null);
        mark(text, "aria-errormessage", name in wrong ? find(".explorer-error").id : null);
      }
      const kept = Object.keys(wrong).length ? [`The result stays that of the last launch that made sense.`] : [];
      put(find(".explorer-error"), [...problems, ...Object.values(wrong), ...kept].join(" "));
      mark(root, "data-stale", kept.length ? "true" : null);
      if (kept.length) return;
      valid = { arch, ...launch };
      render(arch, launch);
      if (byReader) changed();
    }

    function render(arch, launch) {
      const chip = data.chips[arch];
      const words = data.words[chip.vendor];
      const got = occupancy(arch, launch);
      mark(root, "data-vendor", chip.vendor);
      put(find(".explorer-hint"), `${Number((launch.shared_bytes / KIB).toFixed(2))}\u00a0KiB`);
      put(find(".explorer-answer"), answer(chip, words, got));
      renderSlots(chip, got);
      renderBars(chip, words, got);
      renderCliffs(arch, launch, words, got);
      renderChips(arch, launch);
    }

    function answer(chip, words, got) {
      if (!got.groups) return `Cannot launch: ${got.reason}.`;
      const binding = got.limiters.map((name) => data.limiters[chip.vendor][name]).join(" and ");
      const waves = `${got.waves} of ${plural(chip.max_waves, words.wave)}`;
      const groups = `${plural(got.groups, words.group)} per ${words.unit}`;
      return `${groups}: ${waves}, ${percent(got.fraction)}. Bound by ${binding}.`;
    }

    /** One cell a wave slot; neighbouring groups differ in shade. */
    function renderSlots(chip, got) {
      const each = got.waves / got.groups;
      slots.forEach((slot, index) => {
        show(slot, index < chip.max_waves);
        const shade = Math.floor(index / each) % 2 ? "odd" : "even";
        mark(slot, "class", index < got.waves ? shade : null);
      });
    }

    /** Every bar in the same unit. The axis ends at twice the wave slots' answer: more groups than that are moot. */
    function renderBars(chip, words, got) {
      const largest = Math.max(...Object.values(got.limits), 1);
      const axis = got.limits.waves ? Math.min(largest, 2 * got.limits.waves) : largest;
      const table = find(".explorer-bars");
      put(table.caption, `What each resource alone admits, in ${words.group}s per ${words.unit}; the fewest bind`);
      part(table, "--cut", got.groups / axis);
      for (const [name, { row, title, charge, bar, groups, note }] of Object.entries(bars)) {
        show(row, name in chip.limits);
        if (!(name in chip.limits)) continue;
        const applies = name in got.limits;
        const binds = got.limiters.includes(name);
        put(title, data.limiters[chip.vendor][name]);
        put(charge, got.charges[name]);
        part(bar, "--part", applies ? Math.min(1, got.limits[name] / axis) : 0);
        mark(bar, "data-beyond", applies && got.limits[name] > axis ? "true" : null);
        put(groups, applies ? number(got.limits[name]) : "no limit");
        put(note, binds ? "binds" : "");
        mark(row, "data-binds", binds ? "true" : null);
      }
    }

    function renderCliffs(arch, launch, words, got) {
      const labels = data.labels[data.chips[arch].vendor];
      for (const [name, { row, title, fewer, more }] of Object.entries(cliffs)) {
        show(row, name in labels);
        if (!(name in labels)) continue;
        put(title, labels[name]);
        for (const [cell, direction, word] of [[fewer, -1, "fewer"], [more, 1, "more"]]) {
          const value = cliff(arch, launch, name, direction);
          if (value === null) put(cell, "no change");
          else {
            const then = occupancy(arch, { ...launch, [name]: value });
            const step = `${number(Math.abs(value - launch[name]))}\u00a0${word} (${number(value)})`;
            put(cell, `${step}: ${change(got, then, words)}`);
          }
        }
      }
    }

    /** The table that the model wrote for the first launch goes along with the fields. */
    function renderChips(arch, launch) {
      const table = find(".explorer-first table");
      put(
        table.caption,
        `The same launch on every chip: ${number(launch.registers)} registers a thread, ` +
          `${kibibytes(launch.shared_bytes)} of shared memory and ${number(launch.threads)} threads a group`,
      );
      Object.entries(data.chips).forEach(([chip, { vendor, max_waves: slots }], index) => {
        const row = table.tBodies[0].rows[index];
        const [, groups, waves, fraction, binding] = row.cells;
        const got = launchOn(chip, launch);
        mark(row, "aria-current", chip === arch ? "true" : null);
        put(groups, String(got.groups));
        put(waves, `${got.waves} of ${slots}`);
        put(fraction, percent(got.fraction));
        const limiters = got.limiters.map((name) => data.limiters[vendor][name]).join(", ");
        put(binding, got.groups ? limiters : `cannot launch: ${limiters}`);
      });
    }

    function write(state) {
      const problems = [];
      const arch = state.arch ?? data.chip;
      if (Object.hasOwn(data.chips, arch)) chipField.value = arch;
      else problems.push(`Chip: “${arch}” is not one of ${Object.keys(data.chips).join(", ")}.`);
      for (const [name, { text }] of Object.entries(fields)) text.value = state[name] ?? data.launch[name];
      const unknown = Object.keys(state).filter((name) => name !== "arch" && !(name in fields));
      problems.push(...unknown.map((name) => `The link's “${name}=${state[name]}” is no input of this page.`));
      update(problems, false);
    }

    write({});
    return { read: () => valid, write };
  }

  // --- small things --------------------------------------------------------------------------------------------------

  function tableRows(table, make, names) {
    const rows = Object.fromEntries(names.map((name) => [name, make()]));
    table.tBodies[0].append(...Object.values(rows).map(({ row }) => row));
    return rows;
  }

  function barRow() {
    const title = element("span");
    const charge = element("small");
    const bar = element("span", { class: "explorer-bar", "aria-hidden": "true" });
    const groups = element("span");
    const note = element("small");
    const row = element("tr", {}, [
      element("th", { scope: "row" }, [title, charge]),
      element("td", {}, [bar]),
      element("td", {}, [groups, " ", note]),
    ]);
    return { row, title, charge, bar, groups, note };
  }

  function cliffRow() {
    const [title, fewer, more] = [element("th", { scope: "row" }), element("td"), element("td")];
    return { row: element("tr", {}, [title, fewer, more]), title, fewer, more };
  }

  function part(node, property, fraction) {
    const text = `${(100 * fraction).toFixed(2)}%`;
    if (node.style.getPropertyValue(property) !== text) node.style.setProperty(property, text);
  }

  window.chipmath.occupancy = occupancy;
  window.chipmath.cliff = cliff;
  window.chipmath.start("occupancy", start);
})();
