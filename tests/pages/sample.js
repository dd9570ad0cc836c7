"use strict";
{const { data, el, section, table, slider, lineChart, barChart, picture, contents, card, checkbox, select } = multibox;
const image = picture({ src: data.image, width: 60, height: 40, alt: data.name });
const draw = (score) => image.draw([
  { box: [5, 5, 30, 30], text: data.name, onclick: () => { document.title = "clicked"; } },
  { box: [1, 1, 59, 39], dashed: true, faint: score > 0.5 }]);
draw(0);
image.heat(data.heat);
document.getElementById("main").append(contents([["numbers", "Numbers"], ["images", "Images"]]),
  section("numbers", "Numbers", "What they say.", el("div", { class: "cards" }, card("AP", "0.612", "0.58 to 0.64"), card("none", multibox.number(null))),
    table([{ name: "class", value: (row) => row.name }, { name: "AP", value: (row) => row.ap, number: true }], data.rows, { caption: "By class" }),
    lineChart({ series: [{ name: "a", x: [0, 1, 2], y: [0, 0.5, null] }, { name: "b", x: [0, 2], y: [1, 0.2], dashed: true, dots: true }], xLabel: "recall", yLabel: "precision", lines: [{ x: 1, name: "here" }] }),
    barChart([{ name: "missed", value: 3, text: "3" }, { name: "none", value: 0, text: "0" }])),
  section("images", "Images", "", el("div", { class: "controls" }, slider("Score", { value: 0.3, oninput: draw }), checkbox("Ground truth", true, () => {}), select("Level", [["all", "all"], ["0", "38 x 38"]], "0", () => {})), image));
}
