"use strict";
// The page is whole without this: it adds pictures on hover, arrow keys and the choice of a class.
(() => {
  const points = JSON.parse(document.getElementById("points").textContent);
  const maps = [...document.querySelectorAll(".map")].map((svg) => ({
    svg,
    ring: svg.querySelector(".ring"),
    circles: [...svg.querySelectorAll("circle:not(.ring)")],
  }));
  const tip = document.getElementById("tip");
  const picture = tip.querySelector(".picture");
  const words = tip.querySelector(".words");
  let shown = -1;

  const spots = maps.map(({ circles }) =>
    circles.map((c) => [Number(c.getAttribute("cx")), Number(c.getAttribute("cy"))]));

  // what the pointer means: the nearest sample within reach
  function nearest(map, x, y, reach) {
    let found = -1;
    let least = reach * reach;
    spots[map].forEach(([cx, cy], i) => {
      const distance = (cx - x) ** 2 + (cy - y) ** 2;
      if (distance < least && !maps[map].circles[i].classList.contains("away")) {
        least = distance;
        found = i;
      }
    });
    return found;
  }

  // the next sample to one side: near, and more ahead than aside
  function ahead(map, from, dx, dy) {
    const [x0, y0] = spots[map][from];
    let found = from;
    let least = Infinity;
    spots[map].forEach(([x, y], i) => {
      const along = (x - x0) * dx + (y - y0) * dy;
      const aside = Math.abs((x - x0) * dy) + Math.abs((y - y0) * dx);
      const cost = along + 2 * aside;
      if (i !== from && along > 0 && aside <= along && cost < least
          && !maps[map].circles[i].classList.contains("away")) {
        least = cost;
        found = i;
      }
    });
    return found;
  }

  function line(text, bold) {
    const element = document.createElement(bold ? "b" : "span");
    element.textContent = text;
    element.style.display = "block";
    words.append(element);
  }

  function tell(map, i) {
    words.replaceChildren();
    const label = points.labels[i];
    if (label >= 0) line(points.names[label], true);
    const guesses = points.predictions[map];
    if (guesses && guesses[i] >= 0) {
      const right = guesses[i] === label;
      line(`k-NN: ${points.names[guesses[i]]}${label < 0 ? "" : right ? " ✓" : " ✗"}`);
    }
    line(points.keys[i]);
    if (!points.side) return;
    const place = i % points.sheet;
    const zoom = 72 / points.side;
    picture.className = `picture sheet${Math.floor(i / points.sheet)}`;
    picture.style.width = picture.style.height = "72px";
    picture.style.backgroundSize = `${points.columns * 72}px auto`;
    picture.style.backgroundPosition =
      `${-(place % points.columns) * points.side * zoom}px ${-Math.floor(place / points.columns) * points.side * zoom}px`;
  }

  function show(map, i) {
    shown = i;
    maps.forEach(({ ring }, m) => {
      ring.setAttribute("cx", spots[m][i][0]);
      ring.setAttribute("cy", spots[m][i][1]);
    });
    tell(map, i);
    tip.hidden = false;
    const box = maps[map].circles[i].getBoundingClientRect();
    const size = tip.getBoundingClientRect();
    const left = Math.min(box.right + 12, document.documentElement.clientWidth - size.width - 8);
    const above = box.top - size.height - 10;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${above > 8 ? above : box.bottom + 10}px`;
  }

  function hide() {
    shown = -1;
    tip.hidden = true;
    maps.forEach(({ ring }) => { ring.setAttribute("cx", -20); ring.setAttribute("cy", -20); });
  }

  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  maps.forEach(({ svg }, map) => {
    const point = (event) => {
      const box = svg.getBoundingClientRect();
      const unit = 400 / box.width;
      const i = nearest(map, (event.clientX - box.left) * unit, (event.clientY - box.top) * unit, 12 * unit);
      if (i < 0) hide(); else if (i !== shown) show(map, i);
    };
    svg.addEventListener("pointermove", point);
    svg.addEventListener("pointerdown", point);
    svg.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hide();
      const step = steps[event.key];
      if (!step) return;
      event.preventDefault();
      show(map, shown < 0 ? nearest(map, 200, 200, 400) : ahead(map, shown, ...step));
    });
  });

  const only = document.getElementById("only");
  if (only) {
    only.addEventListener("change", () => {
      hide();
      maps.forEach(({ circles }) => circles.forEach((circle, i) => {
        circle.classList.toggle("away", only.value !== "" && points.labels[i] !== Number(only.value));
      }));
    });
  }
})();
