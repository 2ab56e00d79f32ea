"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const LIMIT = Number(document.documentElement.dataset.visible);

  /* Names by index, from the table; every list refers to professions by index. */
  const names = new Map(all("#table tbody tr").map((row) => [row.dataset.p, row.cells[0].textContent]));
  const nameOf = (item) => item.dataset.name ?? names.get(item.dataset.p) ?? "";

  let query = "";
  const lists = all("[data-list]").map((root) => ({
    root,
    name: root.dataset.list,
    items: [...root.children].filter((child) => child.dataset.p !== undefined || child.dataset.name !== undefined),
    open: false,
  }));
  const moreButtons = new Map(all("[data-more]").map((button) => [button.dataset.more, button]));

  /* Long heat maps: rows past the first are numbers only, drawn when they first come near the window. Each is its
     target, then per wording and variant the images of the first label, n, and images without a label. */
  const heat = byId("heat");
  const cells = byId("heat-cells") ? JSON.parse(byId("heat-cells").textContent) : [];
  const undrawn = new Map(heat ? all("tbody tr", heat).slice(Number(heat.dataset.whole)).map((row, i) => [row, cells[i]]) : []);
  const percent = (share) => (100 * share).toFixed(1);
  function wilson(k, n) {
    const z2 = 1.959963984540054 ** 2;
    const middle = (k + z2 / 2) / (n + z2);
    const half = Math.sqrt(z2 * (k * (n - k) / n + z2 / 4)) / (n + z2);
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  }
  function cellTip(name, [k, n, others]) {
    if (n < 0) return `${name} not measured`;
    if (n === 0) return `${name} no determined image of ${others}`;
    return `${name} ${percent(k / n)}\u00a0% (${wilson(k, n).map(percent).join("–")}, n ${n})`;
  }
  function drawCells(row) {
    if (!undrawn.has(row)) return;
    const [target, ...counts] = undrawn.get(row);
    undrawn.delete(row);
    near.unobserve(row);
    const variants = heat.dataset.two === undefined ? [heat.dataset.one] : [heat.dataset.one, heat.dataset.other];
    for (let at = 0; at < counts.length; at += 3 * variants.length) {
      const cell = document.createElement("td");
      const found = variants.map((_, v) => counts.slice(at + 3 * v, at + 3 * v + 3));
      cell.title = found.map((each, v) => cellTip(variants[v], each)).join("; ");
      cell.append(...found.map(([k, n], v) => {
        const span = document.createElement("span");
        span.className = `m${v}`;
        span.textContent = n > 0 ? (100 * k / n).toFixed(0) : "–";
        const room = k / n > target ? 1 - target : target;
        if (n > 0) span.setAttribute("style", `--d:${room === 0 ? 0 : ((k / n - target) / room).toFixed(2)}`);
        return span;
      }));
      row.append(cell);
    }
  }

  const near = new IntersectionObserver(
    (seen) => seen.filter((each) => each.isIntersecting).forEach((each) => drawCells(each.target)),
    { rootMargin: "800px" },
  );
  for (const row of undrawn.keys()) near.observe(row);

  function show(list) {
    const rowPx = Number(list.root.dataset.row ?? 0);
    const topPx = Number(list.root.dataset.top ?? 0);
    let matched = 0;
    let drawn = 0;
    for (const item of list.items) {
      const match = query === "" || nameOf(item).toLowerCase().includes(query);
      matched += match;
      const visible = match && (list.open || matched <= LIMIT);
      item.classList.toggle("late", match && !visible);
      item.classList.toggle("out", !match);
      if (visible && rowPx) item.setAttribute("transform", `translate(0,${topPx + drawn * rowPx})`);
      drawn += visible;
    }
    if (rowPx) list.root.setAttribute("height", topPx + 4 + drawn * rowPx);
    const button = moreButtons.get(list.name);
    if (button) {
      button.parentElement.hidden = matched <= LIMIT;
      button.setAttribute("aria-expanded", String(list.open));
      button.textContent = list.open ? `Show the first ${LIMIT}` : `Show all ${matched.toLocaleString("en")}`;
    }
    return matched;
  }

  for (const list of lists) {
    show(list);
    moreButtons.get(list.name)?.addEventListener("click", () => {
      list.open = !list.open;
      show(list);
    });
  }

  /* Search: one field for the chart, the table, the heat map and the pictures. */
  const find = byId("find");
  const found = byId("found");
  all(".finder, .orders, .tools").forEach((element) => { element.hidden = false; });
  find.addEventListener("input", () => {
    query = find.value.trim().toLowerCase();
    let matched = 0;
    for (const list of lists) {
      const count = show(list);
      if (list.name === "table") matched = count;
    }
    found.textContent = query === "" ? "" : `${matched.toLocaleString("en")} of ${names.size.toLocaleString("en")}`;
  });

  function reorder(list, compare) {
    list.items.sort(compare);
    list.root.append(...list.items);
    show(list);
  }

  /* Missing values go last in either direction. */
  function compareMissingLast(one, other, order) {
    if (one === null || other === null) return (one === null) - (other === null);
    return order(one, other);
  }
  const numeric = (text) => (text === undefined || text === "" ? null : Number(text));

  const chart = lists.find((list) => list.name === "dumbbell");
  byId("order").addEventListener("change", (event) => {
    const key = event.target.value;
    reorder(chart, (one, other) => {
      const name = collator.compare(nameOf(one), nameOf(other));
      if (key === "name") return name;
      return compareMissingLast(numeric(one.dataset[key]), numeric(other.dataset[key]), (a, b) => b - a) || name;
    });
  });

  const table = lists.find((list) => list.name === "table");
  const heads = all("#table th[aria-sort]");
  for (const head of heads) {
    const button = head.querySelector("button");
    button.addEventListener("click", () => {
      const text = button.dataset.kind === "text";
      const current = head.getAttribute("aria-sort");
      const down = current === "none" ? !text : current === "ascending";
      heads.forEach((each) => each.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const column = head.cellIndex;
      reorder(table, (one, other) => {
        const name = collator.compare(nameOf(one), nameOf(other));
        if (text) return sign * name;
        const left = numeric(one.cells[column].dataset.v);
        const right = numeric(other.cells[column].dataset.v);
        return compareMissingLast(left, right, (a, b) => sign * (a - b)) || name;
      });
    });
  }

  for (const button of all("[data-csv]")) {
    button.addEventListener("click", async () => {
      const packed = Uint8Array.from(atob(byId(button.dataset.csv).textContent), (c) => c.charCodeAt(0));
      const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
      const url = URL.createObjectURL(new Blob([await new Response(plain).arrayBuffer()], { type: "text/csv;charset=utf-8" }));
      const link = document.createElement("a");
      link.href = url;
      link.download = button.dataset.file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    });
  }

  /* Pictures, enlarged: a modal dialog, so Escape closes it and focus comes back by itself. */
  const viewer = byId("viewer");
  let pairs = [];
  let at = 0;
  function look(index) {
    at = (index + pairs.length) % pairs.length;
    const pair = pairs[at];
    byId("viewer-h").textContent = pair.dataset.who;
    const component = pair.dataset.component ? ` · ${pair.dataset.component}` : "";
    byId("viewer-meta").textContent = `${pair.dataset.prompt} · seed ${pair.dataset.seed}${component} · ${at + 1} of ${pairs.length}`;
    byId("viewer-two").replaceChildren(...all(".shot", pair).map((shot) => shot.cloneNode(true)));
  }
  document.addEventListener("click", (event) => {
    const pair = event.target.closest(".pair");
    if (!pair) return;
    pairs = all(".gallery .group:not(.out) .pair");
    look(pairs.indexOf(pair));
    viewer.showModal();
  });
  viewer.addEventListener("click", (event) => {
    const what = event.target.dataset.do;
    if (what === "close" || event.target === viewer) viewer.close();
    if (what === "back") look(at - 1);
    if (what === "on") look(at + 1);
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") look(at - 1);
    if (event.key === "ArrowRight") look(at + 1);
  });

  window.addEventListener("beforeprint", () => {
    all("details").forEach((each) => { each.open = true; });
    [...undrawn.keys()].filter((row) => !row.matches(".late, .out")).forEach(drawCells);
  });
})();
