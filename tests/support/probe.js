// What a reader does with the page, and what is seen.
(async () => {
  const found = {};
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const press = (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  await wait(300);
  document.documentElement.style.scrollBehavior = "auto";
  found.opened = all("details.property[open]").map((each) => each.id);
  found.drawnAtFirst = all(".plot").filter((each) => each.querySelector(".main-svg")).length;

  const cells = all(".grid td a"), cell = cells[cells.length - 1];
  cell.click();
  await wait(300);
  const section = document.getElementById(decodeURIComponent(cell.getAttribute("href").slice(1)));
  const box = section.getBoundingClientRect();
  found.cell = { open: section.open, top: box.top, height: innerHeight, focused: section.contains(document.activeElement) };

  scrollTo(0, 0);
  document.activeElement.blur();
  press("n");
  await wait(50);
  found.next = document.activeElement.closest("details")?.id;
  press("/");
  found.filtering = document.activeElement.id;

  const rows = () => all("#metrics tbody tr").map((row) => all("td", row).map((each) => each.textContent));
  const words = document.getElementById("filter"), verdict = document.getElementById("verdict");
  const choose = (text, only) => {
    words.value = text; words.dispatchEvent(new Event("input"));
    verdict.value = only; verdict.dispatchEvent(new Event("change"));
    return rows();
  };
  found.judged = choose("", "judged").length;
  found.everything = choose("", "").length;
  found.failing = choose("", "fail");
  found.words = choose("topk KL_GAP", "");
  const heads = all("#metrics th button");
  choose("kl_gap.kl_sae", "");
  heads[2].click();
  found.up = rows().map((row) => parseFloat(row[2]));
  found.sorted = heads[2].parentElement.getAttribute("aria-sort");
  heads[2].click();
  found.down = rows().map((row) => parseFloat(row[2]));

  all("details").forEach((each) => { each.open = true; });
  for (const plot of all(".plot")) {
    plot.scrollIntoView();
    for (let turn = 0; turn < 300 && !plot.querySelector(".main-svg"); turn++) await wait(20);
  }
  const marks = ".scatterlayer .point, .scatterlayer path.js-line, .barlayer .point";
  const drawing = (plot) => plot.querySelector(".main-svg")?.getBoundingClientRect().width ?? 0;
  found.plots = all(".plot").map((plot) => ({
    title: plot.getAttribute("aria-label"), section: plot.closest("details")?.id ?? "", marks: all(marks, plot).length, width: drawing(plot), room: plot.offsetWidth,
  }));
  found.texts = all("section h2").map((each) => each.textContent);

  window.probeNarrow = async () => {
    const wide = () => all(".plot").filter((plot) => drawing(plot) > plot.offsetWidth + 1).map((each) => each.ariaLabel);
    for (let turn = 0; turn < 300 && (wide().length || innerWidth !== 400); turn++) await wait(20);
    const allowed = (node) => node.closest(".scroll, .plot, .skip");
    const overflowing = all("body *").filter((each) => !allowed(each) && each.getBoundingClientRect().right > innerWidth + 1);
    return { width: document.documentElement.scrollWidth, wide: wide(), overflowing: overflowing.map((each) => each.outerHTML.slice(0, 90)) };
  };
  return found;
})();
