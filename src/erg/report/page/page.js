"use strict";
// The map: points on a canvas, with their pictures. Names are only ever written as textContent.
(() => {
  const holder = document.getElementById("map-data");
  if (!holder) return;
  const map = JSON.parse(holder.textContent);
  const canvas = document.getElementById("map-canvas");
  const pen = canvas.getContext("2d");
  const tip = document.getElementById("map-tip");
  const legend = document.getElementById("map-legend");
  const spoken = document.getElementById("map-spoken");
  const OWN = map.classes.length > 12 ? 11 : map.classes.length; // classes with their own colour
  const PICTURES = 140; // so few points in sight are drawn as their pictures
  const count = map.x.length;
  const extent = (values) => {
    const fine = values.filter((value) => value !== null);
    const top = fine.reduce((a, b) => Math.max(a, b), 0.5);
    return Math.max(0.05, top - fine.reduce((a, b) => Math.min(a, b), 0.5));
  };
  const wide = extent(map.x), high = extent(map.y);

  const sprite = new Image();
  sprite.addEventListener("load", draw);
  sprite.src = document.getElementById("sprite").href.baseVal;

  // A group is what the legend switches: a class, all smaller classes, or images without a label.
  const names = map.classes.slice(0, OWN).map(([name]) => name);
  const sizes = map.classes.slice(0, OWN).map(([, size]) => size);
  const groups = new Uint8Array(count);
  if (map.classes.length) {
    const others = map.label.filter((code) => code >= OWN).length;
    const bare = map.label.filter((code) => code < 0).length;
    const rest = others ? names.push(`${map.classes.length - OWN} other classes`) && sizes.push(others) - 1 : 0;
    const none = bare ? names.push("no label") && sizes.push(bare) - 1 : 0;
    map.label.forEach((code, i) => { groups[i] = code < 0 ? none : code < OWN ? code : rest; });
  } else {
    names.push("all images");
    sizes.push(count);
  }
  const shown = names.map(() => true);

  // What is seen: a point of the data is at (x * zoom + left, (1 - y) * zoom + top) in CSS pixels.
  let width = 0, height = 0, fit = 1, zoom = 0, left = 0, top = 0;
  let chosen = -1, waiting = false, colours = [], discs = [];

  const across = (i) => map.x[i] * zoom + left;
  const down = (i) => (1 - map.y[i]) * zoom + top;
  const visible = (i) => map.x[i] !== null && shown[groups[i]];

  function readColours() {
    const style = getComputedStyle(document.documentElement);
    colours = names.map((_, g) => style.getPropertyValue(g < OWN || !OWN ? `--c${g}` : "--c11").trim());
    legend.querySelectorAll("i").forEach((dot, g) => { dot.style.background = colours[g]; });
  }

  function resize() {
    const box = canvas.getBoundingClientRect();
    if (!box.width || (box.width === width && box.height === height)) return;
    const old = { width, height, relative: zoom / fit };
    ({ width, height } = box);
    canvas.width = Math.round(width * devicePixelRatio);
    canvas.height = Math.round(height * devicePixelRatio);
    fit = Math.max(Math.min((width - 36) / wide, (height - 36) / high), 50);
    if (!zoom || old.relative <= 1.001) return showAll();
    left += (width - old.width) / 2;
    top += (height - old.height) / 2;
    draw();
  }

  function showAll() {
    zoom = fit;
    left = (width - zoom) / 2;
    top = (height - zoom) / 2;
    canvas.classList.remove("zoomed");
    draw();
  }

  /** Zoom by a factor around a place; false where nothing changes. */
  function zoomAt(factor, x, y) {
    const next = Math.min(Math.max(zoom * factor, fit), fit * 60);
    if (Math.abs(next / zoom - 1) < 1e-6) return false;
    left = x - (x - left) * next / zoom;
    top = y - (y - top) * next / zoom;
    zoom = next;
    keepInSight();
    return true;
  }

  function keepInSight() {
    if (zoom <= fit * 1.001) return showAll();
    left = Math.min(Math.max(left, width / 2 - zoom), width / 2);
    top = Math.min(Math.max(top, height / 2 - zoom), height / 2);
    canvas.classList.add("zoomed");
    draw();
  }

  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; paint(); });
  }

  /** A disc of each colour, drawn once: copying it is much faster than drawing arcs. */
  function makeDiscs(radius) {
    const side = Math.ceil(2 * radius + 2);
    discs = colours.map((colour) => {
      const disc = document.createElement("canvas");
      disc.width = disc.height = side;
      const ink = disc.getContext("2d");
      ink.fillStyle = colour;
      ink.beginPath();
      ink.arc(side / 2, side / 2, radius, 0, 7);
      ink.fill();
      return disc;
    });
  }

  function paint() {
    const ratio = devicePixelRatio;
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const inSight = [];
    for (let i = 0; i < count; i++) {
      if (!visible(i)) continue;
      const x = across(i), y = down(i);
      if (x > -30 && y > -30 && x < width + 30 && y < height + 30) inSight.push(i);
    }
    if (inSight.length <= PICTURES && zoom > fit * 1.5 && sprite.complete && sprite.naturalWidth) {
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      for (const i of inSight) {
        pen.fillStyle = colours[groups[i]];
        pen.fillRect(across(i) - 20, down(i) - 20, 40, 40);
        picture(pen, i, across(i) - 18, down(i) - 18, 36);
      }
    } else {
      const grown = Math.pow(zoom / fit, 0.35);
      makeDiscs(Math.min(6, Math.max(1.6, 100 / Math.sqrt(count + 50)) * grown) * ratio);
      pen.globalAlpha = 0.82;
      for (const i of inSight) {
        const disc = discs[groups[i]];
        pen.drawImage(disc, across(i) * ratio - disc.width / 2, down(i) * ratio - disc.height / 2);
      }
      pen.globalAlpha = 1;
    }
    if (chosen >= 0) {
      pen.setTransform(ratio, 0, 0, ratio, 0, 0);
      pen.strokeStyle = getComputedStyle(canvas).color;
      pen.lineWidth = 2;
      pen.beginPath();
      pen.arc(across(chosen), down(chosen), 8, 0, 7);
      pen.stroke();
    }
  }

  function picture(ink, i, x, y, side) {
    const { size, columns } = map;
    ink.drawImage(sprite, (i % columns) * size, Math.floor(i / columns) * size, size, size, x, y, side, side);
  }

  function nearest(x, y, reach) {
    let best = -1, least = reach * reach;
    for (let i = 0; i < count; i++) {
      if (!visible(i)) continue;
      const distance = (across(i) - x) ** 2 + (down(i) - y) ** 2;
      if (distance < least) { least = distance; best = i; }
    }
    return best;
  }

  /** Show a point's picture and names beside it, or nothing for -1. */
  function choose(i, aloud) {
    if (i !== chosen) draw();
    chosen = i;
    tip.hidden = i < 0;
    if (i < 0) return;
    const label = map.label && map.label[i] >= 0 ? map.classes[map.label[i]][0] : "";
    tip.querySelector(".path").textContent = map.path[i];
    tip.querySelector(".label").textContent = label;
    if (aloud) spoken.textContent = label ? `${map.path[i]}, ${label}` : map.path[i];
    const ink = tip.querySelector("canvas").getContext("2d");
    ink.clearRect(0, 0, 96, 96);
    if (sprite.complete && sprite.naturalWidth) picture(ink, i, 0, 0, 96);
    const x = across(i), y = down(i);
    const toLeft = x > width / 2 ? x - tip.offsetWidth - 14 : x + 14;
    const toTop = y > height / 2 ? y - tip.offsetHeight - 14 : y + 14;
    const inside = (value, room) => Math.max(8, Math.min(value, room - 8));
    tip.style.left = `${inside(toLeft, width - tip.offsetWidth)}px`;
    tip.style.top = `${inside(toTop, height - tip.offsetHeight)}px`;
  }

  // Pointers: one moves or looks, two pinch.
  const held = new Map();
  let moved = 0, scrolled = 0;
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return { x: event.clientX - box.left, y: event.clientY - box.top };
  };
  const spread = () => {
    const [a, b] = [...held.values()];
    return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, d: Math.hypot(a.x - b.x, a.y - b.y) || 1 };
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    held.set(event.pointerId, place(event));
    moved = 0;
  });
  canvas.addEventListener("pointermove", (event) => {
    const now = place(event), before = held.get(event.pointerId);
    if (!before) return choose(nearest(now.x, now.y, 14));
    const pinch = held.size === 2 ? spread() : null;
    held.set(event.pointerId, now);
    moved += Math.hypot(now.x - before.x, now.y - before.y);
    if (moved < 4) return;
    choose(-1);
    if (pinch) {
      const after = spread();
      left += after.x - pinch.x;
      top += after.y - pinch.y;
      if (!zoomAt(after.d / pinch.d, after.x, after.y)) keepInSight();
    } else if (zoom > fit) {
      canvas.classList.add("dragging");
      left += now.x - before.x;
      top += now.y - before.y;
      keepInSight();
    }
  });
  const release = (event) => {
    const { x, y } = place(event);
    if (event.type === "pointerup" && moved < 4 && held.size === 1) choose(nearest(x, y, 24), true);
    held.delete(event.pointerId);
    canvas.classList.remove("dragging");
  };
  canvas.addEventListener("pointerup", release);
  canvas.addEventListener("pointercancel", release);
  canvas.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") choose(-1); });
  // Scrolling the page across the map must not turn into zooming.
  addEventListener("scroll", () => { scrolled = performance.now(); }, { passive: true });
  canvas.addEventListener("wheel", (event) => {
    if (performance.now() - scrolled < 300) return;
    const { x, y } = place(event);
    const turned = event.deltaY * (event.deltaMode ? 30 : 1);
    if (zoomAt(Math.exp(-turned * 0.002), x, y)) {
      event.preventDefault();
      choose(nearest(x, y, 14));
    }
  }, { passive: false });

  // Keyboard: arrows walk to the nearest point in their direction.
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    const arrow = arrows[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (arrow) walk(...arrow);
    else if (event.key === "+" || event.key === "=") zoomAt(1.4, ...centre());
    else if (event.key === "-") zoomAt(1 / 1.4, ...centre());
    else if (event.key === "0") showAll();
    else if (event.key === "Escape") return choose(-1);
    else return;
    event.preventDefault();
    choose(chosen, true);
  });
  const centre = () => (chosen < 0 ? [width / 2, height / 2] : [across(chosen), down(chosen)]);

  function walk(dx, dy) {
    const [x, y] = centre();
    let best = -1, least = Infinity;
    for (let i = 0; i < count; i++) {
      if (!visible(i) || i === chosen) continue;
      const ahead = (across(i) - x) * dx + (down(i) - y) * dy;
      const aside = Math.abs((across(i) - x) * dy) + Math.abs((down(i) - y) * dx);
      const cost = chosen < 0 ? Math.hypot(ahead, aside) : ahead <= 0 ? Infinity : ahead + 2 * aside;
      if (cost < least) { least = cost; best = i; }
    }
    if (best < 0) return;
    chosen = best;
    const outX = Math.min(0, across(best) - 30) + Math.max(0, across(best) - width + 30);
    const outY = Math.min(0, down(best) - 30) + Math.max(0, down(best) - height + 30);
    left -= outX;
    top -= outY;
    draw();
  }

  document.querySelectorAll("[data-zoom]").forEach((button) => button.addEventListener("click", () => {
    const factor = Number(button.dataset.zoom);
    choose(-1);
    if (factor) zoomAt(factor, width / 2, height / 2);
    else showAll();
  }));

  // Legend: a button per group.
  if (map.classes.length) {
    names.forEach((name, g) => {
      const button = legend.appendChild(document.createElement("button"));
      button.type = "button";
      button.title = name;
      button.setAttribute("aria-pressed", "true");
      button.appendChild(document.createElement("i"));
      button.appendChild(document.createElement("bdi")).textContent = name;
      button.appendChild(document.createElement("small")).textContent = sizes[g].toLocaleString("en");
      button.addEventListener("click", () => {
        shown[g] = !shown[g];
        button.setAttribute("aria-pressed", String(shown[g]));
        choose(-1);
        draw();
      });
    });
  }

  readColours();
  new ResizeObserver(resize).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); draw(); });
  resize();
})();
