"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const LIMIT = Number(document.documentElement.dataset.visible);

  for (const button of all("[data-csv]")) {
    button.addEventListener("click", () => {
      const url = URL.createObjectURL(new Blob([byId(button.dataset.csv).textContent], { type: "text/csv;charset=utf-8" }));
      const link = document.createElement("a");
      link.href = url;
      link.download = button.dataset.file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(url), 10000);
    });
  }
  all(".finder, .tools").forEach((element) => { element.hidden = false; });

  const find = byId("find");
  if (!find) return;
  const found = byId("found");
  const more = byId("more");
  const items = all("#panels > li");
  let query = "";
  let open = false;
  function show() {
    let matched = 0;
    for (const item of items) {
      const match = query === "" || item.firstElementChild.textContent.toLowerCase().includes(query);
      matched += match;
      item.classList.toggle("out", !match);
      item.classList.toggle("late", match && !open && matched > LIMIT);
    }
    more.parentElement.hidden = matched <= LIMIT;
    more.setAttribute("aria-expanded", String(open));
    more.textContent = open ? `Show the first ${LIMIT}` : `Show all ${matched.toLocaleString("en")}`;
    found.textContent = query === "" ? "" : `${matched.toLocaleString("en")} of ${items.length.toLocaleString("en")}`;
  }
  find.addEventListener("input", () => { query = find.value.trim().toLowerCase(); show(); });
  more.addEventListener("click", () => { open = !open; show(); });
  show();
})();
