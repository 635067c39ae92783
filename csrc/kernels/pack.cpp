// SPDX-License-Identifier: Apache-2.0
// Packs a ranker's tensors into the layout of RankerLayout. Runs once per ranker, on the host.
#include <cstring>

#include "srr.h"

namespace srr {
namespace {

// Round to nearest even; NaN stays NaN.
uint16_t to_bf16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if (value != value) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

class Packer {
 public:
  explicit Packer(void* packed) : bytes_(static_cast<unsigned char*>(packed)) {}

  // W is [N_out, K_in] row-major, as torch.nn.Linear keeps it; its row n goes to column col0 + n and its column k to
  // row row0 + k of the packed matrix.
  void matrix(const PackedMatrix& m, const float* W, int64_t N_out, int64_t K_in, int64_t ld, int64_t col0,
              int64_t row0) {
    unsigned char* at = bytes_ + m.offset_bytes;
    for (int64_t n = 0; n < N_out; ++n) {
      for (int64_t k = 0; k < K_in; ++k) {
        const int64_t index = m.index(row0 + k, col0 + n);
        if (m.bf16) {
          const uint16_t value = to_bf16(W[n * ld + k]);
          std::memcpy(at + 2 * index, &value, 2);
        } else {
          std::memcpy(at + 4 * index, W + n * ld + k, 4);
        }
      }
    }
  }

  // The digits and scales of a float32 matrix whose weights are in place. Few columns are left to float32: they say too
  // little of how large sums are.
  void digits(const PackedMatrix& m) {
    if (m.bf16) return;
    for (int64_t block = 0; block < m.digit_blocks(); ++block) {
      bool fit = m.N >= kPanel;
      for (int64_t n = 0; n < m.N_padded(); ++n) fit = put_column(m, block, n) && fit;
      for (int64_t n = 0; n < m.N_padded() && !fit; ++n)
        put_float(m.scales_bytes() + 4 * (block * m.N_padded() + n), -1);
    }
  }

  void vector(int64_t offset_bytes, const float* v, int64_t n) { std::memcpy(bytes_ + offset_bytes, v, 4 * n); }

 private:
  void put_float(int64_t at_bytes, float value) { std::memcpy(bytes_ + at_bytes, &value, 4); }

  bool put_column(const PackedMatrix& m, int64_t block, int64_t n) {
    float column[kDigitBlock], most = 0;
    double squares = 0;
    const int64_t rows = m.digit_rows(block);
    for (int64_t k = 0; k < rows; ++k) {
      std::memcpy(column + k, bytes_ + m.offset_bytes + 4 * m.index(block * kDigitBlock + k, n), 4);
      const float magnitude = column[k] < 0 ? -column[k] : column[k];
      if (magnitude != magnitude) return false;
      most = magnitude > most ? magnitude : most;
      squares += double{column[k]} * column[k];
    }
    if (most != 0 && !(most >= kDigitFrom && most <= kDigitTo)) return false;
    if (double{most} * most * rows > double{kDigitSpread} * kDigitSpread * squares) return false;
    put_float(m.scales_bytes() + 4 * (block * m.N_padded() + n), most / kDigitMost * 65536);
    if (most == 0) return true;
    unsigned char* to = bytes_ + m.digits_bytes(block, n / kPanel) + n % kPanel * 4;
    for (int64_t k = 0; k < rows; ++k) {
      // Bytes of 128 more each are not negative.
      const uint32_t sum = static_cast<uint32_t>(double{column[k]} / most * kDigitMost + 0x808080 + 0.5);
      unsigned char* step = to + k / kDigitStep * kDigits * kDigitStep * kPanel;
      for (int64_t digit = 0; digit < kDigits; ++digit)
        step[digit * kDigitStep * kPanel + k % 16 * 64 + k % kDigitStep / 16] =
            static_cast<unsigned char>((sum >> (16 - 8 * digit)) ^ 0x80);
    }
    return true;
  }

  unsigned char* bytes_;
};

}  // namespace

void pack_ranker(const RankerLayout& layout, const float* projection_weight, const float* projection_bias,
                 const LayerWeights* layers, void* packed) {
  std::memset(packed, 0, layout.size_bytes());
  Packer to(packed);
  const int64_t p = layout.p, e = layout.head_dim(), E = layout.head_padded();
  to.matrix(layout.projection(), projection_weight, p, layout.d, layout.d, 0, 0);
  to.digits(layout.projection());
  to.vector(layout.projection_bias_bytes(), projection_bias, p);
  for (int64_t i = 0; i < layout.layers; ++i) {
    const PackedLayer at = layout.layer(i);
    const LayerWeights& w = layers[i];
    for (int64_t part = 0; part < 3 * layout.heads; ++part) {  // q, k and v of every head
      to.matrix(at.qkv, w.in_proj_weight + part * e * p, e, p, p, part * E, 0);
      to.vector(at.qkv_bias_bytes + 4 * part * E, w.in_proj_bias + part * e, e);
    }
    for (int64_t head = 0; head < layout.heads; ++head)
      to.matrix(at.out, w.out_proj_weight + head * e, p, e, p, 0, head * E);
    to.matrix(at.ffn1, w.linear1_weight, layout.ffn, p, p, 0, 0);
    to.matrix(at.ffn2, w.linear2_weight, p, layout.ffn, layout.ffn, 0, 0);
    to.digits(at.qkv);
    to.digits(at.out);
    to.digits(at.ffn1);
    to.digits(at.ffn2);
    to.vector(at.out_bias_bytes, w.out_proj_bias, p);
    to.vector(at.ffn1_bias_bytes, w.linear1_bias, layout.ffn);
    to.vector(at.ffn2_bias_bytes, w.linear2_bias, p);
    to.vector(at.norm1_weight_bytes, w.norm1_weight, p);
    to.vector(at.norm1_bias_bytes, w.norm1_bias, p);
    to.vector(at.norm2_weight_bytes, w.norm2_weight, p);
    to.vector(at.norm2_bias_bytes, w.norm2_bias, p);
  }
}

}  // namespace srr
