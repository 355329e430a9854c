// NiiVue comes as a notebook widget (ipyniivue): this page gives it the models a notebook would.
import widget from "./niivue.js";

class Model {
  constructor(values) {
    this.values = values;
    this.listeners = new Map();
    this._comm_live = false; // no kernel: NiiVue need not send the voxels back
  }
  get(name) { return this.values[name]; }
  set(name, value) {
    this.values[name] = value;
    this.tell(`change:${name}`);
  }
  on(event, listener) {
    this.listeners.set(event, [...(this.listeners.get(event) ?? []), listener]);
  }
  off(event, listener) {
    const kept = (this.listeners.get(event) ?? []).filter((other) => listener && other !== listener);
    this.listeners.set(event, kept);
  }
  tell(event, ...content) {
    for (const listener of this.listeners.get(event) ?? []) listener(...content);
  }
  command(type, ...data) { this.tell("msg:custom", { type, data }, []); }
  save_changes() {}
  send_sync_message() {}
  send({ event, data }) { this.heard?.(event, data); }
}

const scene = await (await fetch("scene.json")).json();
document.title = scene.title;
document.getElementById("title").textContent = scene.title;

// Red, green, blue and opacity of each label; background is clear.
function table(colours) {
  const lut = [0, 0, 0, 0];
  for (const [red, green, blue] of colours) lut.push(red, green, blue, 255);
  return { lut, min: 0, max: colours.length };
}

const volumes = new Map(scene.volumes.map((volume, number) => [`v${number}`, new Model({
  id: `v${number}`, name: volume.file, url: new URL(volume.file, document.baseURI).href,
  path: {}, data: null, paired_img_path: {}, paired_img_url: "", paired_img_data: null,
  opacity: number ? 0.5 : 1, colormap: "gray", colormap_negative: "", colormap_type: 0,
  colormap_invert: false, colormap_label: number ? table(volume.colours) : null,
  colorbar_visible: false, cal_min: null, cal_max: null, cal_min_neg: null, cal_max_neg: null,
  frame_4d: 0, modulation_image: null, modulate_alpha: 0,
})]));

const view = new Model({
  opts: {
    sliceType: 3, isNearestInterpolation: true, isColorbar: false, show3Dcrosshair: true,
    crosshairWidth: 0.5, dragAndDropEnabled: false,
  },
  volumes: [...volumes.keys()].map((id) => `IPY_MODEL_${id}`), meshes: [], height: 600,
  background_masks_overlays: false, draw_lut: null, draw_opacity: 0, draw_fill_overwrites: true,
  graph: {}, scene: {}, overlay_outline_width: 0, overlay_alpha_shader: 1,
});
view.widget_manager = { get_model: async (id) => volumes.get(id) };
for (const volume of volumes.values()) volume.widget_manager = view.widget_manager;
view.heard = (event, data) => {
  if (event === "location_change") document.getElementById("place").textContent = data.string;
};

const masks = document.getElementById("masks");
scene.volumes.forEach((volume, number) => {
  if (!number) return;
  const label = document.createElement("label");
  for (const colour of volume.colours.slice(0, 8)) {
    const key = document.createElement("span");
    key.className = "key";
    key.style.backgroundColor = `rgb(${colour})`;
    label.append(key);
  }
  const slider = Object.assign(document.createElement("input"), {
    type: "range", min: 0, max: 1, step: 0.05, value: 0.5,
  });
  slider.addEventListener("input", () => volumes.get(`v${number}`).set("opacity", +slider.value));
  label.append(volume.name, slider);
  masks.append(label);
});
document.getElementById("slices").addEventListener("change", ({ target }) => {
  view.set("opts", { ...view.get("opts"), sliceType: +target.value });
  view.command("draw_scene");
});

const quiet = console.log;
console.log = () => {}; // the widget tells every step
await widget.initialize({ model: view });
await widget.render({ model: view, el: document.getElementById("stage") });
console.log = quiet;
document.body.dataset.shown = "yes";
