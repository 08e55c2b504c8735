// A model in the page: where its weights come from when it is chosen, by which rules it reads, and what the panels ask of a run.

// The bytes of a model: in this page, from the files beside the book, or from the kernel.
async function bytesOf(model, { name, file }) {
  const packed = model.get("weights")?.[name];
  if (packed) return Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)).buffer;
  if (!model.page) return fromKernel(model, name);
  if (!model.page.files) throw new Error(`the weights of ${name} are not in this page. In the book and in a notebook every model can be chosen.`);
  if (location.protocol === "file:") throw new Error("a page that is opened from the disk may not read the weights beside it. Serve the book: make serve, or python -m http.server in its folder.");
  const answer = await fetch(new URL(file, model.page.files)).catch((error) => ({ statusText: error.message }));
  if (!answer.ok) throw new Error(`the weights of ${name} could not be fetched: ${answer.status ?? ""} ${answer.statusText}`);
  return answer.arrayBuffer();
}

function fromKernel(model, name) {
  return new Promise((done, fail) => {
    const hear = ({ weights, error }, buffers) => {
      if (weights !== name) return;
      model.off("msg:custom", hear);
      clearTimeout(waiting);
      if (error) fail(new Error(error));
      else done(buffers[0].buffer.slice(buffers[0].byteOffset, buffers[0].byteOffset + buffers[0].byteLength));
    };
    const waiting = setTimeout(() => hear({ weights: name, error: "the kernel did not send the weights; is it running?" }), 30000);
    model.on("msg:custom", hear);
    model.send({ weights: name });
  });
}

// The models that were read; one table for all views of a widget.
function library(model, entries) {
  const nets = (model.nets ??= new Map());
  return (name) => {
    if (!nets.has(name)) nets.set(name, bytesOf(model, entries.find((entry) => entry.name === name)).then((bytes) => readModel(bytes, name)));
    return nets.get(name).catch((error) => { nets.delete(name); throw error; });
  };
}

// What was chosen, `s`, as rules for `forward`; those that a model of attention has are not asked.
function rulesFor(net, s) {
  if (net.rules.aggregation === "attention") return { ...net.rules, segment_size: s.size };
  if (weighs(s.aggregation) && s.gate === "context" && !net.connected)
    throw new Error("this model was trained without gates, so it has no connector W_u; choose u = q, or equal gates.");
  return { ...net.rules, aggregation: s.aggregation, gate: s.gate, top_k: s.top_k, segment_size: s.size };
}

const titleOf = (name, { aggregation, top_k, segment_size }) => [name, aggregation !== "attention" && `read by ${READINGS[aggregation]}`,
  aggregation === "ssc" && `k = ${top_k}`, aggregation !== "none" && `segments of ${segment_size}`].filter(Boolean).join(", ");

// Whether two rules read in the same way: only SSC has a k, only gates a connector, and one memory no segments.
const alike = (a, b) => a.aggregation === b.aggregation && (a.aggregation === "none" || a.segment_size === b.segment_size) &&
  (a.aggregation !== "ssc" || a.top_k === b.top_k) && (!weighs(a.aggregation) || a.gate === b.gate);

// What the panels ask of one run: the gates, memory by memory as they would be packed, and what each gate belongs to.
function variantOf({ traces }, rules, T, name) {
  const { N, size, H } = traces[0], slots = N + 1, gates = [];
  if (weighs(rules.aggregation)) for (let slot = 0; slot < slots; slot++) for (let t = slot < N ? (slot + 1) * size : 0; t < T; t++)
    for (const trace of traces) for (let head = 0; head < H; head++) gates.push(trace.gates[(t * H + head) * slots + slot]);
  return { name, kind: rules.aggregation, init: rules.init, top_k: rules.top_k, layers: traces.length, heads: H,
    memories: range(N, (n) => [n * size, (n + 1) * size, (n + 1) * size, T]), ...(gates.length ? { gates: Float64Array.from(gates) } : {}) };
}

const lengthsOf = ([{ N, size }], T) => range(N + 1, (n) => Math.min(size, T - n * size));

// Row t of the logits as probabilities.
function probabilities(logits, t, size) {
  const row = Float64Array.from(logits.subarray(t * size, (t + 1) * size));
  softmax(row, size);
  return row;
}
