// SPDX-License-Identifier: Apache-2.0
// What the encoder on AMX keeps in the workspace: sizes and places.

constexpr int64_t kAmxChunkRows = 128;  // what a chunk of short sequences grows to
constexpr int64_t kAmxTileRows = 32;    // rows that go through the feed-forward block together; of wide rankers, more
constexpr int64_t kAmxTileRowsWide = 96;
constexpr int64_t kAmxQueryRows = 2 * kTileHeight;  // queries of one attention tile
constexpr int64_t kAmxKeyBlock = 4 * kBlockK;       // keys that it looks at together
constexpr int64_t kTileFloats = kTileHeight * kPanel;

// Sizes in elements of what the tiles read. Columns are padded with zeros to whole steps.
struct AmxSizes {
  int64_t x, head, heads, mixed, ffn;
  int64_t keys;       // of the longest sequence
  int64_t tile_rows;  // of one feed-forward tile
};

inline AmxSizes amx_sizes(const RankerLayout& l, int64_t longest) {
  const int64_t head = round_up(l.head_padded(), kStep);
  return {round_up(l.p, kStep),
          head,
          l.heads * head,
          round_up(l.heads_padded(), kStep),
          round_up(l.ffn_padded(), kStep),
          round_up(longest, kStep),
          l.p < 256 ? kAmxTileRows : kAmxTileRowsWide};
}

// The buffers of one chunk behind its rows, and of one of its workers.
struct AmxChunk {
  uint16_t* qkv;     // [rows, 3, heads, head]
  uint16_t* mixed;   // [rows, mixed]
  uint16_t* keys;    // [heads][panels of 16 keys][steps of 32 columns][16 pairs][16]: k, transposed
  uint16_t* values;  // [heads][panels of 16 columns][steps of 32 keys][16 pairs][16]
};
struct AmxTile {
  float* sums;       // [2, 4 tiles]: products on their way
  float* logits;     // [kAmxQueryRows, kAmxKeyBlock]
  float* out;        // [kAmxQueryRows, E]
  uint16_t* shares;  // [kAmxQueryRows, kAmxKeyBlock]: softmax
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

inline AmxChunk amx_chunk(Pieces& pieces, const RankerLayout& l, const AmxSizes& n, int64_t rows) {
  AmxChunk c;
  pieces.take(c.qkv, rows * 3 * n.heads);
  pieces.take(c.mixed, rows * n.mixed);
  pieces.take(c.keys, n.heads * n.keys);
  pieces.take(c.values, l.heads_padded() * n.keys);
  return c;
}
inline AmxTile amx_tile(Pieces& pieces, const RankerLayout& l, const AmxSizes& n) {
  AmxTile t;
  pieces.take(t.sums, 2 * 4 * kTileFloats);
  pieces.take(t.logits, kAmxQueryRows * kAmxKeyBlock);
  pieces.take(t.out, kAmxQueryRows * l.head_padded());
  pieces.take(t.shares, kAmxQueryRows * kAmxKeyBlock);
  pieces.take(t.x, n.tile_rows * n.x);
  pieces.take(t.hidden, n.tile_rows * n.ffn);
  return t;
}

inline int64_t amx_chunk_bytes(const RankerLayout& l, const AmxSizes& n, int64_t rows) {
  Pieces pieces{nullptr};
  amx_chunk(pieces, l, n, rows);
  return pieces.bytes;
}
inline int64_t amx_tile_bytes(const RankerLayout& l, const AmxSizes& n) {
  Pieces pieces{nullptr};
  amx_tile(pieces, l, n);
  return pieces.bytes;
}
