"use strict";
/* What the live page says about its model, and how programs use the same server. */
{
const { el } = multibox;
const { say, word, named, onLanguage, languageSwitch, copy } = multibox.parts;

/** Names of the classes that the model can find; COCO's numbering leaves gaps, which `coco` calls "unused 12" and so on. */
multibox.known = (names) => names.filter((name) => !/^unused \d+$/.test(name));

/** Nodes of the page's header: one line about the model, a choice of models where there are several, the language. */
multibox.heading = (model) => {
  const line = el("p", { class: "about" });
  onLanguage(() => { line.textContent = [model.about, say("countClasses", multibox.known(model.names).length), model.licence && say("licence", model.licence)].filter(Boolean).join(" · "); });
  const names = model.links?.models ?? [];
  const choice = names.length < 2 ? null : named(el("select", { onchange: () => location.assign(`?model=${encodeURIComponent(choice.value)}`) },
    names.map((name) => el("option", { value: name, selected: name === model.model }, name))), "aria-label", "model");
  const skip = document.querySelector(".skip");
  if (skip) onLanguage(() => { skip.textContent = say("skip"); });
  return [line, el("div", { class: "choices" }, choice, languageSwitch())];
};

/** Folds below the page: every class, and lines for programs. */
multibox.about = (model) => {
  const names = multibox.known(model.names);
  const list = el("details", { class: "part" }, el("summary", {}, word("knows", names.length)), el("p", { class: "names" }, names.join(", ")));
  return [names.length > 1 ? list : null, model.api ? program(model) : null].filter(Boolean);
};

function program(model) {
  const query = model.links?.models?.length > 1 ? `?model=${encodeURIComponent(model.model)}` : "";
  const address = new URL(`predict${query}`, location.href).href;
  const shell = ["curl --data-binary @photo.jpg", "-H 'content-type: image/jpeg'", model.secured ? "-H \"authorization: Bearer $MULTIBOX_TOKEN\"" : null, `'${address}'`].filter(Boolean).join(" \\\n  ");
  const token = model.secured ? ', "authorization": "Bearer " + os.environ["MULTIBOX_TOKEN"]' : "";
  const python = `import json, ${model.secured ? "os, " : ""}urllib.request

with open("photo.jpg", "rb") as image:
    headers = {"content-type": "image/jpeg"${token}}
    request = urllib.request.Request("${address}", image.read(), headers)
for one in json.load(urllib.request.urlopen(request))["detections"]:
    print(one["name"], one["score"], one["box"])`;
  const links = [["openapi", model.links?.openapi], ["docs", model.links?.docs]].filter(([, href]) => href);
  return el("details", { class: "part" }, el("summary", {}, word("program")), el("p", { class: "note" }, word("programNote")),
    block("fromShell", shell), block("fromPython", python),
    links.length ? el("p", {}, links.map(([key, href], place) => [place ? " · " : "", el("a", { href }, word(key))])) : null);
}

function block(key, text) {
  const button = el("button", { type: "button", onclick: async () => { button.textContent = say(await copy(text) ? "copied" : "copyFailed"); setTimeout(() => { button.textContent = say("copyText"); }, 2500); } });
  onLanguage(() => { button.textContent = say("copyText"); });
  return [el("h3", {}, el("span", {}, word(key)), button), el("pre", { tabindex: "0" }, el("code", {}, text))];
}
}
