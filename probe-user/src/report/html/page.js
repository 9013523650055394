"use strict";
(() => {
  const all = [...document.querySelectorAll("details.incident")];
  const groups = [...document.querySelectorAll("section.group")];
  const query = document.getElementById("q");
  const tools = document.getElementById("tools");
  if (!tools) return;
  tools.hidden = false;

  // Details that are packed stand in blocks: compressed lists of their markup.
  const blocks = [...document.querySelectorAll("template.packed")].map((packed) => ({ packed }));
  const list = (block) => {
    block.list ??= (async () => {
      const bytes = Uint8Array.from(atob(block.packed.content.textContent), (letter) => letter.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
      return JSON.parse(await new Response(stream).text());
    })().catch(() => []);
    return block.list;
  };
  const unread = "<p class=body>This browser cannot unfold the details; a newer one can.</p>";

  // Where scripts run, a noscript holds the text of the details and no elements: they are made when they are first looked at.
  const make = (markup) => new DOMParser().parseFromString(markup, "text/html").body.childNodes;
  const unpack = async (incident) => {
    const plain = incident.querySelector(":scope > noscript");
    if (plain) plain.replaceWith(...make(plain.textContent));
    if (!incident.dataset.p) return;
    const [block, position] = incident.dataset.p.split(".");
    const all = await list(blocks[block]);
    if (!incident.dataset.p) return;
    delete incident.dataset.p;
    incident.append(...make(all[position] ?? unread));
  };
  document.addEventListener("toggle", (event) => {
    const opened = event.target;
    if (opened.open && opened.matches("details.incident")) unpack(opened);
  }, true);

  // What is searched: the line of the incident and its details, without their markup and without the catalogue's words on other causes.
  const texts = new Map();
  const letters = { "&lt;": "<", "&gt;": ">", "&quot;": "\"", "&#39;": "'", "&amp;": "&" };
  const textOf = (incident, lists) => {
    let text = texts.get(incident);
    if (text === undefined) {
      const [block, position] = (incident.dataset.p ?? "").split(".");
      const markup = position ? lists[block][position] : incident.querySelector(":scope > noscript")?.textContent;
      const details = markup
        ? markup.replace(/<section class="?aside[^]*?<\/section>/, "").replace(/<[^>]*>/g, " ").replace(/&(lt|gt|quot|#39|amp);/g, (name) => letters[name])
        : [...incident.querySelectorAll(":scope > .body > :not(.cols), :scope > .body > .cols > :not(.aside)")].map((part) => part.textContent).join(" ");
      const group = incident.closest(".group").querySelector("h3").textContent;
      text = `${group} ${incident.querySelector("summary").textContent} ${details}`.toLowerCase();
      texts.set(incident, text);
    }
    return text;
  };

  const found = document.getElementById("found");
  let asked = 0;
  const search = async () => {
    const mine = ++asked;
    const words = query.value.toLowerCase().split(/\s+/).filter(Boolean);
    const lists = words.length ? await Promise.all(blocks.map(list)) : [];
    if (mine !== asked) return;
    let count = 0;
    for (const incident of all) {
      const text = words.length ? textOf(incident, lists) : "";
      incident.hidden = !words.every((word) => text.includes(word));
      if (!incident.hidden) count += 1;
    }
    for (const group of groups) {
      group.hidden = !group.querySelector("details.incident:not([hidden])");
      const rest = group.querySelector(":scope > details.rest");
      if (!rest) continue;
      const hit = rest.querySelector("details.incident:not([hidden])") !== null;
      rest.hidden = !hit;
      if (words.length) rest.open = hit && count <= 200;
    }
    document.getElementById("none").hidden = count > 0;
    found.value = words.length ? `${count} of ${all.length}` : `${all.length} in all`;
  };
  let waiting = 0;
  query.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  tools.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });

  // Many at once are opened a few at a time, so that the page stays usable meanwhile.
  let round = 0;
  const unfold = () => {
    const mine = ++round;
    const left = all.filter((incident) => !incident.hidden && !incident.open);
    for (const rest of document.querySelectorAll("details.rest:not([hidden])")) rest.open = true;
    const some = async () => {
      if (mine !== round) return;
      const next = left.splice(0, 10);
      await Promise.all(next.map(unpack));
      for (const incident of next) incident.open = true;
      if (left.length) setTimeout(some, 0);
    };
    some();
  };
  const fold = () => {
    round += 1;
    for (const incident of all) incident.open = false;
  };
  document.getElementById("unfold").addEventListener("click", unfold);
  document.getElementById("fold").addEventListener("click", fold);

  // A link to an incident opens it.
  const reveal = async (name) => {
    const target = name ? document.getElementById(name) : null;
    if (!target) return;
    for (let outer = target; outer; outer = outer.parentElement) {
      if (outer.matches("details")) {
        if (outer.matches(".incident")) await unpack(outer);
        outer.open = true;
      }
    }
    target.scrollIntoView();
  };
  const follow = () => reveal(location.hash.slice(1));
  addEventListener("hashchange", follow);

  const step = (by) => {
    const lines = all.filter((incident) => incident.checkVisibility()).map((incident) => incident.querySelector("summary"));
    const here = lines.indexOf(document.activeElement);
    const next = lines[Math.min(Math.max(here + by, 0), lines.length - 1)];
    if (next) {
      next.focus();
      next.scrollIntoView({ block: "nearest" });
    }
  };
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, textarea");
    if (event.key === "Escape" && typing) {
      query.value = "";
      search();
      query.blur();
    } else if (typing) {
      return;
    } else if (event.key === "/") {
      event.preventDefault();
      query.focus();
      query.select();
    } else if (event.key === "j") {
      step(1);
    } else if (event.key === "k") {
      step(-1);
    }
  });

  // A row of the picture and its row in the table light up together.
  const light = (event, on) => {
    const row = event.target.closest?.("[data-e], tr.e");
    const seen = row?.closest(".seen");
    if (!seen) return;
    const number = Number(row.dataset.e ?? row.rowIndex);
    const tableRow = seen.querySelector("table.evidence").rows[number];
    for (const part of [tableRow, seen.querySelector(`rect.band[data-e="${number}"]`)]) part?.classList.toggle("lit", on);
  };
  addEventListener("mouseover", (event) => light(event, true));
  addEventListener("mouseout", (event) => light(event, false));

  search();
  follow();
})();
