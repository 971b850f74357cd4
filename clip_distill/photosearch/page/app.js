// The page of `clip-distill search`: asks the API, shows photos as one scrolls, and is used by keys alone if one likes
import { WORDS } from "./words.js";

const $ = (id) => document.getElementById(id);
const PAGE = 60;
let language = localStorage.getItem("language") ?? (navigator.language.startsWith("zh") ? "zh" : "en");
let asked = null; // a photo: {blob} or {like: id}
let run = 0; // of the question; answers to an older one are dropped
let by = "student"; // whose order
let photos = [], loading = false, ended = false, total = 0, shown = -1, took = 0;
const words = () => WORDS[language];

function speak(text) { $("said").textContent = text; }

function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  document.title = words().title;
  for (const each of document.querySelectorAll("[data-word]")) each.textContent = words()[each.dataset.word];
  const input = $("words");
  input.placeholder = words().ask;
  input.setAttribute("aria-label", words().title);
  for (const [id, word] of [["choose", "choose"], ["drop-photo", "forget"], ["previous", "previous"], ["next", "next"], ["results", "results"]])
    $(id).setAttribute("aria-label", words()[word]);
  $("asked-image").alt = words().asked;
  $("language").textContent = words().other;
  $("language").lang = words().code;
  $("whose").textContent = by === "student" ? words().teachers : words().students;
  const all = $("folder").options[0];
  if (all) all.textContent = words().all;
}

function filters() {
  const found = new URLSearchParams();
  for (const id of ["since", "until"]) if ($(id).value) found.set(id, $(id).value.replaceAll("-", ""));
  if ($("folder").value) found.set("folder", $("folder").value);
  return found;
}

async function answers(first, count, like) {
  const query = filters();
  query.set("k", count);
  query.set("first", first);
  const text = $("words").value.trim();
  if (like !== undefined) query.set("like", like);
  else if (text) query.set("q", text);
  if (like === undefined && asked?.like !== undefined) query.set("like", asked.like);
  if (like === undefined && !text && !asked) return [await json(`/api/latest?${query}`), null];
  query.set("fold", $("fold").checked);
  query.set("by", by);
  const options = like === undefined && asked?.blob ? { method: "POST", body: asked.blob } : {};
  const began = performance.now();
  const found = await json(`/api/search?${query}`, options);
  return [found, performance.now() - began];
}

async function json(address, options = {}) {
  const response = await fetch(address, options);
  const found = await response.json().catch(() => null);
  if (!response.ok) throw new Error(typeof found?.detail === "string" ? found.detail : response.statusText);
  return found;
}

async function ask() {
  const mine = ++run;
  loading = true;
  try {
    const [found, time] = await answers(0, PAGE);
    if (mine !== run) return;
    [photos, ended, took] = [[], found.length < PAGE, time];
    $("results").replaceChildren();
    add(found);
    say();
  } catch (error) {
    if (mine === run) speak(error instanceof TypeError ? words().lost : error.message);
  } finally {
    if (mine === run) loading = false;
  }
  more();
}

function say() {
  speak(!photos.length && !total ? words().nothing : took === null ? words().latest(total) : words().found(total, Math.max(1, Math.round(took))));
}

async function more() {
  if (loading || ended || $("end").getBoundingClientRect().top > innerHeight * 2.5) return;
  const mine = run;
  loading = true;
  try {
    const [found] = await answers(photos.length, PAGE);
    if (mine !== run) return;
    ended = found.length < PAGE;
    add(found);
  } catch { ended = true; } finally { if (mine === run) loading = false; }
  if (!ended) requestAnimationFrame(more);
}

function heading(word) {
  const item = document.createElement("li");
  item.className = "heading";
  item.dataset.word = word;
  item.textContent = words()[word];
  return item;
}

function add(found) {
  const grid = $("results");
  for (const photo of found) {
    const last = photos.at(-1);
    if (photo.good && !photos.length) grid.append(heading("good"));
    if (photo.good === false && (last?.good ?? true)) grid.append(heading("rest"));
    const place = photos.push(photo) - 1;
    grid.append(tile(photo, () => open(place)));
  }
  $("end").hidden = !photos.length;
  $("end").textContent = ended ? words().end : "";
}

function tile(photo, action) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  const image = document.createElement("img");
  const name = photo.path.split(/[\\/]/).at(-1);
  image.src = `/thumb/${photo.id}`;
  image.alt = name;
  image.loading = "lazy";
  image.decoding = "async";
  image.onerror = () => item.classList.add("gone");
  item.style.setProperty("--ratio", Math.min(2.4, Math.max(0.5, photo.width / photo.height || 1)));
  button.type = "button";
  button.dataset.id = photo.id;
  button.title = photo.path;
  button.append(image);
  if (photo.score) button.append(badge("score", photo.score.toFixed(3)));
  if (photo.same.length) {
    button.append(badge("same", `+${photo.same.length}`));
    button.setAttribute("aria-label", `${name}, ${words().same(photo.same.length)}`);
  }
  button.onclick = action;
  item.append(button);
  return item;
}

function badge(kind, text) {
  const span = document.createElement("span");
  span.className = kind;
  span.textContent = text;
  return span;
}

async function open(place) {
  shown = place;
  await show(photos[place]);
}

async function show(photo) {
  $("photo").src = `/photo/${photo.id}`;
  $("photo").alt = photo.path.split(/[\\/]/).at(-1);
  $("path").textContent = photo.path;
  const day = String(photo.taken).replace(/(\d{4})(\d\d)(\d\d)/, "$1-$2-$3");
  $("facts").textContent = [day, `${photo.width} × ${photo.height}`, photo.score ? photo.score.toFixed(3) : ""].filter(Boolean).join(" · ");
  $("large").dataset.id = photo.id;
  $("copy").textContent = words().copy;
  $("previous").disabled = shown <= 0;
  $("next").disabled = shown < 0 || shown >= photos.length - 1;
  if (!$("large").open) $("large").showModal();
  $("similar").replaceChildren();
  const [found] = await answers(0, 9, photo.id).catch(() => [[]]);
  if (Number($("large").dataset.id) !== photo.id) return;
  for (const each of found.filter((other) => other.id !== photo.id).slice(0, 8))
    $("similar").append(tile(each, () => { shown = -1; show(each); }));
}

function step(by) {
  if (shown + by >= 0 && shown + by < photos.length) open(shown + by);
  if (shown >= photos.length - 4) { scrollTo(0, document.body.scrollHeight); more(); }
}

function askWith(photo, source) {
  asked = photo;
  $("asked-photo").hidden = !photo;
  if (photo) $("asked-image").src = source;
  ask();
}

function alike() {
  const id = Number($("large").dataset.id);
  $("large").close();
  $("words").value = "";
  scrollTo(0, 0);
  askWith({ like: id }, `/thumb/${id}`);
}

function take(file) {
  if (file?.type.startsWith("image/") || /\.(heic|heif)$/i.test(file?.name ?? "")) askWith({ blob: file }, URL.createObjectURL(file));
}

async function status() {
  let wait = 15000;
  try {
    const found = await json("/api/status");
    const { running, done, total: files, rate, seconds_left: left, error } = found.indexing;
    $("indexing").hidden = !running;
    if (running) {
      wait = 1000;
      $("bar").max = files || 1;
      $("bar").value = done;
      const time = left === null ? "" : left > 90 ? `${Math.round(left / 60)} min` : `${Math.round(left)} s`;
      $("how-far").textContent = words().indexing(done, files, rate, time);
    }
    if (error) speak(error);
    $("about").textContent = words().about(found.photos, found.unread.length);
    $("whose").hidden = !found.beside;
    const folders = ["", ...found.folders];
    if (folders.length !== $("folder").options.length) {
      const chosen = $("folder").value;
      $("folder").replaceChildren(...folders.map((name) => new Option(name || words().all, name)));
      $("folder").value = chosen;
    }
    if (found.photos !== total) {
      const few = photos.length < PAGE;
      total = found.photos;
      if (few && !$("large").open) ask(); else say();
    }
  } catch { speak(words().lost); }
  setTimeout(status, wait);
}

let typed;
$("words").addEventListener("input", () => { clearTimeout(typed); typed = setTimeout(ask, 180); });
$("form").addEventListener("submit", (event) => { event.preventDefault(); clearTimeout(typed); ask(); });
for (const id of ["folder", "since", "until", "fold"]) $(id).addEventListener("change", ask);
$("scores").addEventListener("change", () => document.body.classList.toggle("scores", $("scores").checked));
$("choose").onclick = () => $("file").click();
$("file").onchange = () => { take($("file").files[0]); $("file").value = ""; };
$("drop-photo").onclick = () => { askWith(null); $("words").focus(); };
$("language").onclick = () => {
  language = words().code;
  localStorage.setItem("language", language);
  translate();
  say();
};
$("whose").onclick = () => {
  by = by === "student" ? "teacher" : "student";
  $("whose").setAttribute("aria-pressed", by === "teacher");
  translate();
  ask();
};
$("close").onclick = () => $("large").close();
$("large").addEventListener("close", () => { document.querySelector(`#results [data-id="${photos[shown]?.id}"]`)?.focus(); shown = -1; });
$("large").addEventListener("click", (event) => { if (event.target === $("large")) $("large").close(); });
$("previous").onclick = () => step(-1);
$("next").onclick = () => step(1);
$("alike").onclick = alike;
$("copy").onclick = async () => { await navigator.clipboard?.writeText($("path").textContent); $("copy").textContent = words().copied; };
addEventListener("scroll", more, { passive: true });
addEventListener("resize", more);
addEventListener("paste", (event) => take([...event.clipboardData.files][0]));
addEventListener("dragover", (event) => { event.preventDefault(); $("drop").hidden = false; });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
addEventListener("drop", (event) => { event.preventDefault(); $("drop").hidden = true; take(event.dataTransfer.files[0]); });

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.matches("input:not([type=checkbox]), select");
  if ($("large").open) {
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key.toLowerCase() === "m") alike();
    return;
  }
  if (event.key === "ArrowDown" && event.target === $("words")) { event.preventDefault(); focusTile(0); }
  if (typing) return;
  if (event.key === "/") { event.preventDefault(); $("words").select(); }
  else if (event.key.toLowerCase() === "s") $("scores").click();
  else if (event.key.startsWith("Arrow")) move(event);
});

const tiles = () => [...document.querySelectorAll("#results button")];

function focusTile(place) { tiles()[place]?.focus(); }

function move(event) {
  const all = tiles(), place = all.indexOf(document.activeElement);
  if (place < 0) return;
  event.preventDefault();
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") return focusTile(Math.max(0, place + (event.key === "ArrowRight" ? 1 : -1)));
  const here = all[place].getBoundingClientRect(), down = event.key === "ArrowDown";
  const rows = all.filter((each) => { const top = each.getBoundingClientRect().top; return down ? top > here.top + 5 : top < here.top - 5; });
  if (!rows.length) { if (!down) $("words").focus(); return; }
  const tops = rows.map((each) => each.getBoundingClientRect().top), top = down ? Math.min(...tops) : Math.max(...tops);
  const near = (each) => Math.abs(each.getBoundingClientRect().left + each.offsetWidth / 2 - here.left - here.width / 2);
  rows.filter((_, i) => Math.abs(tops[i] - top) < 5).sort((a, b) => near(a) - near(b))[0].focus();
}

translate();
ask().then(status);
