// Rows are drawn on demand from JSON blocks, as text nodes only: no text of a row becomes markup.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const parsed = (id) => JSON.parse($(id).textContent);
  const words = parsed("words");
  const root = document.documentElement;
  const SHOWN = 600; // characters of a part, unless whole texts are shown
  const PAGE = 20;
  const SLICE = 12; // milliseconds of work before the page may answer
  const BLOCKS = 24; // parsed blocks that are kept
  const KINDS = ["prompt", "frame", "response", "end", "reward"]; // as in inspection/encoded.py
  const CUT = 8, TRAINED = 16, CONTROL = 32;
  const DROPPED = 1, CUT_OFF = 2, NOTED = 4;
  let language = (navigator.language || "en").toLowerCase().startsWith("zh") ? "zh" : "en";

  const t = (key, values = {}) =>
    Object.entries(values).reduce((text, [name, value]) => text.split(`{${name}}`).join(value), words[language][key] ?? key);
  const translated = (kind, text, otherwise) =>
    Object.hasOwn(words[language][kind] ?? {}, text) ? words[language][kind][text] : otherwise;
  const noteOf = (note) => translated("notes", note, note);
  const reasonOf = (reason) => translated("reasons", reason, ""); // a reason is an English word itself
  const number = (value) => value.toLocaleString("en-US");
  const join = (list) => list.join(language === "zh" ? "，" : ", ");

  function element(tag, kind, ...children) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    made.append(...children.filter((child) => child !== ""));
    return made;
  }
  function button(text, pressed, act) {
    const made = element("button", "", text);
    made.type = "button";
    if (pressed !== null) made.setAttribute("aria-pressed", pressed);
    made.addEventListener("click", act);
    return made;
  }

  function translate() {
    root.lang = language === "zh" ? "zh-CN" : "en";
    for (const one of document.querySelectorAll("[data-i18n]")) {
      one.textContent = t(one.dataset.i18n, one.dataset.n ? { n: number(Number(one.dataset.n)) } : {});
    }
    for (const one of document.querySelectorAll("[data-i18n-placeholder]")) {
      one.placeholder = t(one.dataset.i18nPlaceholder);
      one.setAttribute("aria-label", one.placeholder);
    }
    for (const one of document.querySelectorAll("[data-note]")) one.textContent = noteOf(one.dataset.note);
    for (const one of document.querySelectorAll("[data-reason]")) one.textContent = reasonOf(one.dataset.reason);
    $("language").textContent = t("language");
  }

  $("theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  $("language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    translate();
    if (meta) refresh();
  });

  const meta = $("meta") ? parsed("meta") : null;
  translate();
  if (!meta) return;

  const state = { show: "all", order: "source", query: "", page: 0, whole: false, tokens: false };
  let found = []; // numbers of the rows that match, in their order
  let running = 0; // number of the latest search
  const blocks = new Map();

  function block(at) {
    let rows = blocks.get(at);
    if (!rows) {
      rows = parsed(`block-${at}`);
      if (blocks.size >= BLOCKS) blocks.delete(blocks.keys().next().value);
    } else {
      blocks.delete(at); // the latest comes last
    }
    blocks.set(at, rows);
    return rows;
  }
  const rowAt = (n) => block(Math.floor(n / meta.block))[n % meta.block];

  const SHOWS = {
    all: () => true,
    kept: (flags) => !(flags & DROPPED),
    dropped: (flags) => flags & DROPPED,
    cut: (flags) => flags & CUT_OFF,
    noted: (flags) => flags & NOTED,
  };
  const ORDERS = {
    source: null,
    longest: (a, b) => meta.length[b] - meta.length[a] || a - b,
    shortest: (a, b) => meta.length[a] - meta.length[b] || a - b,
    gap_order: (a, b) => Math.abs(meta.gap[b]) - Math.abs(meta.gap[a]) || a - b,
  };
  const counts = Object.fromEntries(
    Object.entries(SHOWS).map(([name, fits]) => [name, meta.flags.reduce((sum, flags) => sum + (fits(flags) ? 1 : 0), 0)]),
  );

  const textOf = (text) => (typeof text === "number" ? meta.strings[text] : Array.isArray(text) ? text.join("") : text);
  function texts(row) {
    if (!row[1]) return row.join("\n");
    return [row[0], ...row[5].map(([label, , , parts]) => label + "\n" + parts.map((part) => textOf(part[1])).join(""))].join("\n");
  }

  function selected() {
    const fits = SHOWS[state.show];
    const rows = [];
    for (let n = 0; n < meta.rows; n++) {
      if (fits(meta.flags[n]) && (state.order === "source" || !(meta.flags[n] & DROPPED))) rows.push(n);
    }
    return ORDERS[state.order] ? rows.sort(ORDERS[state.order]) : rows;
  }

  async function refresh() {
    const mine = ++running;
    const rows = selected();
    const query = state.query.toLowerCase();
    if (query) {
      const hits = new Set();
      let begin = performance.now();
      const ordered = [...rows].sort((a, b) => a - b); // each block is parsed once
      for (let at = 0; at < ordered.length; at++) {
        if (texts(rowAt(ordered[at])).toLowerCase().includes(query)) hits.add(ordered[at]);
        if (performance.now() - begin > SLICE) {
          $("count").textContent = `${t("searching")} ${Math.round((100 * at) / ordered.length)} %`;
          await new Promise((done) => setTimeout(done));
          if (mine !== running) return;
          begin = performance.now();
        }
      }
      found = rows.filter((n) => hits.has(n));
    } else {
      found = rows;
    }
    go(state.page);
  }

  function go(page) {
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(Math.max(0, page), pages - 1);
    const first = state.page * PAGE;
    const shown = found.slice(first, first + PAGE);
    $("rows").replaceChildren(...(shown.length ? shown.map((n) => card(n, rowAt(n))) : [element("p", "quiet", t("nothing"))]));
    const range = shown.length ? `${number(first + 1)}–${number(first + shown.length)}` : "0";
    $("count").textContent = t(found.length === 1 ? "range_one" : "range", { range, n: number(found.length) });
    $("page").value = state.page + 1;
    $("page").max = pages;
    $("pages").textContent = `/ ${number(pages)}`;
    for (const one of document.querySelectorAll("[data-go]")) {
      one.disabled = one.dataset.go === "previous" ? state.page === 0 : state.page === pages - 1;
      one.setAttribute("aria-label", t(one.dataset.go));
    }
    controls();
  }

  function controls() {
    $("filters").replaceChildren(
      ...Object.keys(SHOWS)
        .filter((name) => name === "all" || (counts[name] && (name !== "kept" || counts.dropped)))
        .map((name) => {
          const made = button(`${t(name)} ${number(counts[name])}`, name === state.show, () => {
            Object.assign(state, { show: name, page: 0 });
            if (name === "dropped") state.order = "source";
            refresh().then(() => document.querySelector(`[data-show="${name}"]`)?.focus());
          });
          made.dataset.show = name;
          return made;
        }),
    );
    $("order").replaceChildren(
      ...Object.keys(ORDERS)
        .filter((name) => name !== "gap_order" || meta.gap.some(Boolean))
        .map((name) => {
          const option = element("option", "", t(name));
          option.value = name;
          option.selected = name === state.order;
          return option;
        }),
    );
    $("expand").textContent = t(state.whole ? "shorten" : "expand");
    $("expand").setAttribute("aria-pressed", state.whole);
    $("tokens").hidden = !meta.tokens;
    $("tokens").textContent = t(state.tokens ? "show_texts" : "show_tokens");
    $("tokens").setAttribute("aria-pressed", state.tokens);
  }

  function card(n, row) {
    const made = element("article");
    made.dataset.row = n;
    if (!row[1]) {
      const [origin, , reason, problem, raw] = row;
      made.append(element("h3", "", `${origin} · `, element("span", "fact", t("dropped")), ` · ${reason}`, element("span", "quiet", ` ${reasonOf(reason)}`)));
      made.append(section(t("dropped"), "fact", element("div", "text-of fact", problem), element("div", "quiet", t("in_english"))));
      if (raw) made.append(section(t("row"), "", text(element("div", "text-of quiet"), raw)));
      return made;
    }
    const [origin, , sides, prompt, margin, sections, facts] = row;
    const head = element("h3", "", `${origin} · `);
    sides.forEach(([side, size], at) => {
      head.append(at ? ", " : "", element("span", side, t(side)), ` ${number(size)}`);
    });
    head.append(element("span", "quiet", ` ${t(meta.unit)} · ${t("prompt")} ${number(prompt)}`));
    if (margin !== null) head.append(element("span", "quiet", ` · ${t("margin")} ${margin}`));
    made.append(head);
    for (const [label, side, trained, parts] of sections) {
      const body = element("div", "text-of");
      for (const part of parts) draw(body, part);
      const known = ["prompt", "chosen", "rejected", "response"].includes(label);
      const shown = section(known ? t(label) : label, colour(side), body);
      shown.classList.add(`${side}-side`, colour(side));
      made.append(shown);
      if (trained !== null && meta.unit === "tokens") {
        shown.lastChild.append(element("div", "under", `${number(trained)} ${t("loss")}`));
      }
    }
    for (const [label, value] of sentences(facts)) made.append(section(label, "fact", element("div", "text-of", value)));
    return made;
  }
  const colour = (side) => (side === "response" ? "chosen" : side);

  function section(label, kind, ...children) {
    return element("div", "section", element("div", kind, label), element("div", "", ...children));
  }

  function draw(body, [code, words_, ids]) {
    const flags = [KINDS[code & 7], code & CUT ? "cut" : "", code & TRAINED ? "trained" : "", code & CONTROL ? "control" : ""];
    if (flags[0] === "reward") flags[0] = "end";
    const kind = flags.filter(Boolean).join(" ");
    if (state.tokens && ids) {
      words_.forEach((word, at) => {
        const shown = word.replaceAll(" ", "␣").replaceAll("\n", "⏎").replaceAll("\t", "⇥") || "⋯";
        body.append(element("span", `token ${kind}`, element("span", "", shown), element("small", "", String(ids[at]))));
      });
      return;
    }
    text(body.appendChild(element("span", `part ${kind}`)), flags[0] === "frame" ? textOf(words_).replaceAll("\n", "⏎") : textOf(words_));
  }

  function text(target, whole) {
    if (state.whole || whole.length <= SHOWN * 1.2) {
      target.append(whole);
      return target;
    }
    const half = Math.floor(SHOWN / 2);
    const [head, tail] = [[...whole.slice(0, half)], [...whole.slice(-half)]]; // no surrogate is left alone
    if (/[\ud800-\udbff]$/.test(head.join(""))) head.pop();
    if (/^[\udc00-\udfff]/.test(tail.join(""))) tail.shift();
    target.append(head.join(""), button(`… ${t("more")} (${number(whole.length)}) …`, null, () => target.replaceChildren(whole)), tail.join(""));
    target.querySelector("button").className = "more";
    return target;
  }

  function sentences(facts) {
    const made = [];
    if (facts.cut) {
      const of = (name) => (name === "prompt" ? t("of_prompt") : t(name));
      made.push([t("cut"), facts.cut[0][0] === "cached" ? t("cached_cut") : join(facts.cut.map(([n, name]) => t("n_cut", { n: number(n), of: of(name) })))]);
    }
    if (facts.changed) {
      const turn = (words_) => {
        const [, role, side] = /^the (\S+) turn(?: of (\S+))?$/.exec(words_) || [];
        return role === undefined ? words_ : side ? t("turn_of", { role, side: t(side) }) : t("turn", { role });
      };
      made.push([t("changed"), t("changed_by", { what: join(facts.changed.map(turn)) })]);
    }
    if (facts.lost) made.push([t("lost"), t("lost_by", { what: facts.lost.map((one) => `“${one}”`).join(" … ") })]);
    for (const note of facts.notes || []) made.push([t("note"), noteOf(note)]);
    if (facts.rollout) {
      const [n, cut, own] = facts.rollout;
      made.push([t("rollout"), t(cut ? "rollout_cut" : "rollout_is", { n: number(n), cut: number(cut), what: own || t("above") })]);
    }
    if (facts.carried) made.push([t("carried_label"), facts.carried]);
    if (facts.unread) made.push([t("unread_label"), t("unread_fields", { what: join(facts.unread) })]);
    return made;
  }

  let typing;
  $("search").addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      Object.assign(state, { query: $("search").value.trim(), page: 0 });
      refresh();
    }, 150);
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("order").addEventListener("change", () => {
    Object.assign(state, { order: $("order").value, page: 0 });
    if (state.show === "dropped" && state.order !== "source") state.show = "all";
    refresh();
  });
  $("page").addEventListener("change", () => go((Number($("page").value) || 1) - 1));
  const flip = (name) => {
    state[name] = !state[name];
    go(state.page);
  };
  $("expand").addEventListener("click", () => flip("whole"));
  $("tokens").addEventListener("click", () => flip("tokens"));
  function turn(step, event) {
    go(state.page + step);
    if (event) $("samples").scrollIntoView();
  }
  for (const one of document.querySelectorAll("[data-go]")) {
    one.addEventListener("click", () => turn(one.dataset.go === "next" ? 1 : -1, one.closest(".pager") !== document.querySelector(".pager")));
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      $("search").focus();
    } else if (event.key === "ArrowRight") turn(1);
    else if (event.key === "ArrowLeft") turn(-1);
    else if (event.key === "e") flip("whole");
  });

  refresh();
})();
