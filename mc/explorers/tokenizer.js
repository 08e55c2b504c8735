// A byte-level BPE tokenizer, as mc.text.tokenizers has it: text to tokens by the merges that it learned, and back.

// The letter that stands for each byte: itself where it can be seen, else the next free one from 256 on.
function byteLetters() {
  const seen = (b) => (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
  let free = 256;
  return range(256, (b) => String.fromCharCode(seen(b) ? b : free++));
}

// Where no merge goes across: a shortened word, letters, digits or signs, with one space before them; other space.
const PARTS = /'(?:[stmd]|re|ve|ll)| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;

// `vocab`: every token in the order of their numbers, in letters of bytes; `merges`: pairs of such, the earliest first; `special`: names of
// tokens that no text has, by number.
function readTokenizer({ vocab, merges, special }) {
  const letters = byteLetters(), bytes = new Map(letters.map((letter, b) => [letter, b]));
  const numbers = new Map(vocab.map((token, i) => [token, i])), ranks = new Map(merges.map(([a, b], i) => [`${a} ${b}`, i]));
  const encoder = new TextEncoder(), strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }), lenient = new TextDecoder("utf-8", { ignoreBOM: true }), known = new Map();
  const bytesOf = (i) => (i in special ? [] : [...vocab[i]].map((letter) => bytes.get(letter)));

  function merged(part) {
    let pieces = Array.from(encoder.encode(part), (b) => letters[b]);
    for (;;) {
      let best = Infinity;
      for (let i = 0; i + 1 < pieces.length; i++) best = Math.min(best, ranks.get(`${pieces[i]} ${pieces[i + 1]}`) ?? Infinity);
      if (best === Infinity) return pieces.map((piece) => numbers.get(piece));
      const [a, b] = merges[best], next = [];
      for (let i = 0; i < pieces.length; i++) {
        const both = pieces[i] === a && pieces[i + 1] === b;
        next.push(both ? a + b : pieces[i]);
        if (both) i++;
      }
      pieces = next;
    }
  }

  const encode = (text) => (text.match(PARTS) ?? []).flatMap((part) => {
    if (!known.has(part)) known.set(part, merged(part));
    return known.get(part);
  });
  const decode = (ids) => lenient.decode(Uint8Array.from(ids.flatMap(bytesOf)));
  // What is no whole letter is shown as its bytes.
  const piece = (i) => {
    let left = bytesOf(i), text = special[i] ?? "";
    while (left.length) {
      const size = left[0] < 0x80 ? 1 : left[0] < 0xe0 ? 2 : left[0] < 0xf0 ? 3 : 4;
      try {
        text += strict.decode(Uint8Array.from(left.slice(0, size)));
        left = left.slice(size);
      } catch {
        text += `\\x${left[0].toString(16).padStart(2, "0")}`;
        left = left.slice(1);
      }
    }
    return text;
  };
  return { encode, decode, pieces: (ids) => ids.map(piece) };
}
