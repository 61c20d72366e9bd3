"use strict";
// Draws the figures of the page. Colours of text and grid follow the page's theme: dark, light or print.
const figures = JSON.parse(document.getElementById("figures").textContent);
const PRINT = { ink: "#1d232b", grid: "#e3e6ea", paper: "#ffffff", width: 680 };

function screenTheme() {
  const style = getComputedStyle(document.documentElement);
  const value = (name) => style.getPropertyValue(name).trim();
  return { ink: value("--ink"), grid: value("--grid"), paper: value("--paper") };
}

function template(theme) {
  const title = { standoff: 8, font: { size: 12 } };
  const axis = { gridcolor: theme.grid, linecolor: theme.grid, tickcolor: theme.grid, zerolinecolor: theme.grid, ticklabelstandoff: 4, title };
  const label = { bgcolor: theme.paper, bordercolor: theme.grid, font: { color: theme.ink } };
  const font = { family: "system-ui, sans-serif", size: 12, color: theme.ink };
  const clear = "rgba(0,0,0,0)";
  const margin = { l: 56, r: 16, t: 12, b: 44 };
  return { layout: { font, paper_bgcolor: clear, plot_bgcolor: clear, xaxis: axis, yaxis: axis, hoverlabel: label, margin } };
}

function draw(theme) {
  for (const [name, figure] of Object.entries(figures)) {
    const layout = { ...figure.layout, template: template(theme), autosize: !theme.width };
    if (theme.width) layout.width = theme.width;
    Plotly.react(`figure-${name}`, figure.data, layout, { displayModeBar: false, responsive: true });
  }
}

const drawForScreen = () => draw(screenTheme());
drawForScreen();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawForScreen);
addEventListener("beforeprint", () => draw(PRINT));
addEventListener("afterprint", drawForScreen);
