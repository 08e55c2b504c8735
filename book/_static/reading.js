// A link into something closed opens it; and a term shows its definition where it stands.
(function () {
  "use strict";

  // ---- links into what is folded
  function open() {
    const id = decodeURIComponent(location.hash.slice(1)), target = id && document.getElementById(id);
    if (!target) return;
    const seen = target.matches("span:empty") && target.nextElementSibling || target;    // a label stands before its section
    const closed = [...seen.querySelectorAll(":scope > details.mc-section")];
    for (let e = seen.parentElement; e; e = e.parentElement) if (e.tagName === "DETAILS") closed.push(e);
    if (closed.every((e) => e.open)) return;
    closed.forEach((e) => { e.open = true; });
    target.scrollIntoView();
  }
  addEventListener("hashchange", open);
  addEventListener("toggle", (event) => {    // what was drawn where it had no room looks again
    if (event.target.matches("details.mc-fold[open]")) dispatchEvent(new Event("resize"));
  }, true);
  addEventListener("click", (event) => {    // the address that is there already changes no hash
    const link = event.target.closest("a[href]");
    if (link && link.hash && link.href === location.href) open();
  });
  open();

  // ---- terms
  const texts = document.querySelector("template.mc-terms");
  if (!texts) return;
  const tip = Object.assign(document.createElement("div"), { className: "mc-tip", id: "mc-tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  document.body.append(tip);
  let owner = null, timer = 0, touched = false;

  const term = (node) => node.closest && node.closest("article a[href*='#term-']");
  const text = (link) => texts.content.querySelector(`[data-term="${CSS.escape(decodeURIComponent(link.hash.slice(1)))}"]`);

  function place() {
    const at = owner.getClientRects()[0], box = tip.getBoundingClientRect();
    const left = Math.max(12, Math.min(at.left, document.documentElement.clientWidth - box.width - 12));
    const above = at.bottom + box.height + 12 > innerHeight && at.top > box.height + 12;
    tip.style.left = left + scrollX + "px";
    tip.style.top = (above ? at.top - box.height - 6 : at.bottom + 6) + scrollY + "px";
  }

  function show(link) {
    clearTimeout(timer);
    if (owner === link) return;
    hide();
    const found = text(link);
    if (!found) return;
    owner = link;
    tip.replaceChildren(found.cloneNode(true));
    tip.hidden = false;
    link.setAttribute("aria-describedby", tip.id);
    place();
    if (window.MathJax && MathJax.typesetPromise && tip.querySelector(".math"))
      MathJax.typesetPromise([tip]).then(() => { if (owner === link) place(); });
  }

  function hide() {
    clearTimeout(timer);
    if (!owner) return;
    owner.removeAttribute("aria-describedby");
    owner = null;
    tip.hidden = true;
  }
  const later = (what, ms) => { clearTimeout(timer); timer = setTimeout(what, ms); };

  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return;
    const link = term(event.target);
    if (link) later(() => show(link), owner ? 60 : 180);
    else if (tip.contains(event.target)) clearTimeout(timer);
    else if (document.activeElement !== owner) later(hide, 220);    // a page that scrolls under the pointer hides nothing
  });
  document.addEventListener("focusin", (event) => {
    const link = term(event.target);
    if (link && link.matches(":focus-visible")) show(link);
    else if (owner && !tip.contains(event.target) && !touched) hide();
  });
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  document.addEventListener("pointerdown", (event) => { touched = event.pointerType === "touch"; }, true);
  document.addEventListener("click", (event) => {
    const link = term(event.target);
    if (link && touched && owner !== link && text(link)) {    // the first tap shows, the second goes there
      event.preventDefault();
      show(link);
    } else if (!link && !tip.contains(event.target)) hide();
  });
  addEventListener("resize", hide);
})();
