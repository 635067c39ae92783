// SPDX-License-Identifier: Apache-2.0
// What the encoder for bfloat16 weights keeps in the workspace: sizes and places.

constexpr int64_t kBf16ChunkRows = 128;         // what a chunk of short sequences grows to
constexpr int64_t kBf16TileRowsWide = 96;       // kBf16TileRows of wide rankers
constexpr int64_t kBf16KeyBlock = 4 * kBlockK;  // keys that an attention tile looks at together
static_assert(kBf16TileRows % 2 == 0 && kBf16TileRowsWide % 2 == 0 && kBf16QueryRows % 2 == 0, "tiles are evened out");

// Sizes in elements of what products read. Columns are padded with zeros to whole steps.
struct Bf16Sizes {
  int64_t x, head, heads, mixed, ffn;
  int64_t keys;       // of the longest sequence
  int64_t tile_rows;  // of one feed-forward tile
};

inline Bf16Sizes bf16_sizes(const RankerLayout& l, int64_t longest) {
  const int64_t head = round_up(l.head_padded(), kStep);
  return {round_up(l.p, kStep),
          head,
          l.heads * head,
          round_up(l.heads_padded(), kStep),
          round_up(l.ffn_padded(), kStep),
          round_up(longest, kStep),
          l.p < 256 ? kBf16TileRows : kBf16TileRowsWide};
}

// The buffers of one chunk behind its rows, and of one of its workers.
struct Bf16Chunk {
  uint16_t* qkv;     // [rows, 3, heads, head]
  uint16_t* mixed;   // [rows, mixed]
  uint16_t* keys;    // [heads][panels of 16 keys][steps of 32 columns][16 pairs][16]: k, transposed
  uint16_t* values;  // [heads][panels of 16 columns][steps of 32 keys][16 pairs][16]
};
struct Bf16Tile {
  float* sums;       // [kSumFloats]
  float* logits;     // [kBf16QueryRows, kBf16KeyBlock]
  float* out;        // [kBf16QueryRows, E]
  uint16_t* shares;  // [kBf16QueryRows, kBf16KeyBlock]: softmax
  uint16_t* x;       // [tile_rows, x]
  uint16_t* hidden;  // [tile_rows, ffn]
};

// Hands out pieces of memory one after another, each 64-byte aligned; from null it measures.
struct Pieces {
  unsigned char* base;
  int64_t bytes = 0;
  template <class T>
  SRR_INLINE void take(T*& piece, int64_t count) {
    piece = base ? reinterpret_cast<T*>(base + bytes) : nullptr;
    bytes += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
  }
};

inline Bf16Chunk bf16_chunk(Pieces& pieces, const RankerLayout& l, const Bf16Sizes& n, int64_t rows) {
  Bf16Chunk c;
  pieces.take(c.qkv, rows * 3 * n.heads);
  pieces.take(c.mixed, rows * n.mixed);
  pieces.take(c.keys, n.heads * n.keys);
  pieces.take(c.values, l.heads_padded() * n.keys);
  return c;
}
inline Bf16Tile bf16_tile(Pieces& pieces, const RankerLayout& l, const Bf16Sizes& n) {
  Bf16Tile t;
  pieces.take(t.sums, kSumFloats);
  pieces.take(t.logits, kBf16QueryRows * kBf16KeyBlock);
  pieces.take(t.out, kBf16QueryRows * l.head_padded());
  pieces.take(t.shares, kBf16QueryRows * kBf16KeyBlock);
  pieces.take(t.x, n.tile_rows * n.x);
  pieces.take(t.hidden, n.tile_rows * n.ffn);
  return t;
}

inline int64_t bf16_chunk_bytes(const RankerLayout& l, const Bf16Sizes& n, int64_t rows) {
  Pieces pieces{nullptr};
  bf16_chunk(pieces, l, n, rows);
  return pieces.bytes;
}
inline int64_t bf16_tile_bytes(const RankerLayout& l, const Bf16Sizes& n) {
  Pieces pieces{nullptr};
  bf16_tile(pieces, l, n);
  return pieces.bytes;
}
