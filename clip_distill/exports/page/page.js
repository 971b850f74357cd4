// Photos and words become vectors in this page; their products rank the photos. Nothing leaves it.
import * as ort from "./lib/ort.wasm.bundle.min.mjs";
import { Tokenizer } from "./lib/tokenizers.min.mjs";

const SHOWN = 60;
const SAY = {
  en: {
    title: "Search photos", private: "Your photos stay on this device: this page sends nothing.",
    files: "Choose photos", folder: "Choose a folder", ask: "What do you look for?",
    loading: "Loading the model …", ready: "Ready. Choose photos.",
    indexing: (n, all, ms) => `${n} of ${all} photos, ${ms} ms each`,
    indexed: (n, ms, bad) => `${n} photos, ${ms} ms each${bad ? `; ${bad} could not be read` : ""}`,
    answered: (n, ms) => `${n} photos ranked in ${ms} ms`,
    failed: (why) => `This did not work: ${why}`,
  },
  zh: {
    title: "搜索照片", private: "照片只留在这台设备上：本页面不发送任何内容。",
    files: "选择照片", folder: "选择文件夹", ask: "想找什么？",
    loading: "正在加载模型……", ready: "准备好了，请选择照片。",
    indexing: (n, all, ms) => `${all} 张中的第 ${n} 张，每张 ${ms} 毫秒`,
    indexed: (n, ms, bad) => `${n} 张照片，每张 ${ms} 毫秒${bad ? `；${bad} 张无法读取` : ""}`,
    answered: (n, ms) => `${n} 张照片已排序，用时 ${ms} 毫秒`,
    failed: (why) => `出错了：${why}`,
  },
};
const byId = (id) => document.getElementById(id);
const photos = []; // {name, address, vector}
const seen = new Set();
let language = navigator.language.startsWith("zh") ? "zh" : "en";
let told = ["loading"];
let asked = 0;

function say() {
  document.documentElement.lang = language;
  document.title = SAY[language].title;
  for (const node of document.querySelectorAll("[data-say]")) node.textContent = SAY[language][node.dataset.say];
  const other = language === "en" ? "zh" : "en";
  byId("language").textContent = other === "zh" ? "中文" : "English";
  byId("language").lang = other;
  tell(...told);
}

function tell(key, ...values) {
  told = [key, ...values];
  const text = SAY[language][key];
  byId("indexed").textContent = typeof text === "string" ? text : text(...values);
}

const json = async (name) => (await fetch(name)).json();

async function load() {
  ort.env.wasm.wasmPaths = { wasm: new URL("./lib/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  const towers = await json("towers.json");
  const tokenizer = new Tokenizer(await json("tokenizer.json"), await json("tokenizer_config.json"));
  const open = (tower) => ort.InferenceSession.create(towers[tower].file, { executionProviders: ["wasm"] });
  return { towers, tokenizer, image: await open("image"), text: await open("text") };
}

/** What of a photo is drawn, and where, as the student's preprocessing has it. */
function placed(width, height, preprocess, side) {
  const mode = preprocess.resize_mode ?? "shortest";
  if (mode === "squash") return [0, 0, width, height, 0, 0, side, side];
  if (mode === "longest") {
    const scale = side / Math.max(width, height);
    const [w, h] = [Math.round(width * scale), Math.round(height * scale)];
    return [0, 0, width, height, Math.floor((side - w) / 2), Math.floor((side - h) / 2), w, h];
  }
  const square = Math.min(width, height);
  return [(width - square) / 2, (height - square) / 2, square, square, 0, 0, side, side];
}

async function pixelsOf(file, preprocess) {
  const side = [preprocess.size].flat()[0];
  const picture = await createImageBitmap(file); // turned as the camera says
  const canvas = new OffscreenCanvas(side, side);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.fillRect(0, 0, side, side);
  context.drawImage(picture, ...placed(picture.width, picture.height, preprocess, side));
  picture.close();
  const { data } = context.getImageData(0, 0, side, side);
  const rgb = new Uint8Array(side * side * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return new ort.Tensor("uint8", rgb, [1, side, side, 3]);
}

async function embed(model, tower, tensor) {
  const { input, output } = model.towers[tower];
  return (await model[tower].run({ [input.name]: tensor }))[output.name].data;
}

function idsOf(model, words) {
  const longest = model.towers.text.tokenizer.context_length;
  const { ids } = model.tokenizer.encode(words);
  const kept = ids.length > longest ? [...ids.slice(0, longest - 1), ids.at(-1)] : ids;
  return new ort.Tensor("int64", BigInt64Array.from(kept, BigInt), [1, kept.length]);
}

async function add(model, files) {
  const fresh = [...files].filter((file) => {
    const key = `${file.webkitRelativePath || file.name}|${file.size}|${file.lastModified}`;
    const known = seen.has(key) || !(file.type.startsWith("image/") || file.type === "");
    seen.add(key);
    return !known;
  });
  const bar = byId("progress");
  let bad = 0, spent = 0;
  bar.hidden = false;
  for (const [number, file] of fresh.entries()) {
    const began = performance.now();
    try {
      const vector = await embed(model, "image", await pixelsOf(file, model.towers.image.preprocess));
      photos.push({ name: file.webkitRelativePath || file.name, address: URL.createObjectURL(file), vector });
    } catch {
      bad += 1;
    }
    spent += performance.now() - began;
    bar.value = (number + 1) / fresh.length;
    if (number % 8 === 7) {
      tell("indexing", number + 1, fresh.length, Math.round(spent / (number + 1)));
      await new Promise((go) => setTimeout(go));
    }
  }
  bar.hidden = true;
  tell("indexed", photos.length, Math.round(spent / Math.max(1, fresh.length)), bad);
  byId("words").disabled = photos.length === 0;
  if (photos.length) byId("words").focus();
  await answer(model);
}

async function answer(model) {
  const words = byId("words").value.trim();
  const turn = ++asked;
  if (!words || !photos.length) return show([]);
  const began = performance.now();
  const query = await embed(model, "text", idsOf(model, words));
  if (turn !== asked) return; // a later question is under way
  const score = (vector) => vector.reduce((sum, value, place) => sum + value * query[place], 0);
  const ranked = photos.map((photo) => ({ ...photo, score: score(photo.vector) })).sort((a, b) => b.score - a.score);
  byId("answered").textContent = SAY[language].answered(photos.length, Math.round(performance.now() - began));
  show(ranked.slice(0, SHOWN));
}

function show(ranked) {
  if (!ranked.length) byId("answered").textContent = "";
  byId("results").replaceChildren(...ranked.map(({ name, address, score }) => {
    const item = document.createElement("li");
    const picture = Object.assign(new Image(), { src: address, alt: name, loading: "lazy" });
    const line = document.createElement("span");
    line.append(Object.assign(document.createElement("b"), { textContent: name, title: name }), score.toFixed(2));
    item.append(picture, line);
    return item;
  }));
}

async function start() {
  say();
  byId("language").onclick = () => { language = language === "en" ? "zh" : "en"; say(); };
  const failed = (error) => tell("failed", error.message ?? error);
  const model = await load().catch((error) => { failed(error); throw error; });
  tell("ready");
  let queue = Promise.resolve(); // one set of photos after the other
  const take = (files) => { queue = queue.then(() => add(model, files)).catch(failed); };
  for (const id of ["files", "folder"]) byId(id).onchange = ({ target }) => take(target.files);
  let waiting;
  byId("words").oninput = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => answer(model).catch(failed), 120);
  };
  byId("ask").onsubmit = (event) => { event.preventDefault(); answer(model).catch(failed); };
  const drop = byId("drop");
  for (const kind of ["dragover", "dragleave", "drop"]) {
    drop.addEventListener(kind, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", kind === "dragover");
      if (kind === "drop") take(event.dataTransfer.files);
    });
  }
  document.documentElement.dataset.ready = "true";
}

start();
