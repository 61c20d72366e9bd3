"use strict";
// Draws the figures of the page. Colours of text and grid follow the page's own, so that dark, light and print all read.
const figures = JSON.parse(document.getElementById("figures").textContent);
const PRINT = { ink: "#1d232b", grid: "#e3e6ea", paper: "#ffffff", width: 680 };

function screenLook() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  return { ink: value("--ink"), grid: value("--grid"), paper: value("--paper") };
}

function template(look) {
  const title = { standoff: 8, font: { size: 12 } };
  const axis = { gridcolor: look.grid, linecolor: look.grid, tickcolor: look.grid, zerolinecolor: look.grid, ticklabelstandoff: 4, title };
  const label = { bgcolor: look.paper, bordercolor: look.grid, font: { color: look.ink } };
  const font = { family: "system-ui, sans-serif", size: 12, color: look.ink };
  const clear = "rgba(0,0,0,0)";
  const margin = { l: 56, r: 16, t: 12, b: 44 };
  return { layout: { font, paper_bgcolor: clear, plot_bgcolor: clear, xaxis: axis, yaxis: axis, hoverlabel: label, margin } };
}

function draw(look) {
  for (const [place, figure] of Object.entries(figures)) {
    const layout = { ...figure.layout, template: template(look), autosize: !look.width };
    if (look.width) layout.width = look.width;
    Plotly.react(`figure-${place}`, figure.data, layout, { displayModeBar: false, responsive: true });
  }
}

const drawForScreen = () => draw(screenLook());
drawForScreen();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawForScreen);
addEventListener("beforeprint", () => draw(PRINT));
addEventListener("afterprint", drawForScreen);
