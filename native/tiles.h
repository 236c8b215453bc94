// The matrix unit of AMX: eight tiles of at most sixteen rows of 64 bytes, and products of tiles of signed bytes.
//
// A library is compiled for its instructions, or, to test what uses them on any processor, for the same in plain loops.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AMX_INT8__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace nvila {

#if defined(__AMX_INT8__) || defined(NVILA_TILE_MODEL)
constexpr bool kHasTiles = true;
#else
constexpr bool kHasTiles = false;
#endif
constexpr int kTileRows = 16, kTileRowBytes = 64;

// What the instruction that sets the shapes of tiles reads.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

#if defined(__AMX_INT8__)

// Asks the system for the unit's registers, which it saves for processes that asked alone; whether it has them.
inline bool enable_tiles() {
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM and XFEATURE_XTILEDATA of Linux
  static const bool is_enabled = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return is_enabled;
}
inline void set_tiles(const TileShapes& shapes) { asm volatile("ldtilecfg %0" ::"m"(shapes) : "memory"); }
inline void release_tiles() { asm volatile("tilerelease" ::: "memory"); }

template <int kTile>
inline void zero_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Rows that lie `step` bytes apart.
template <int kTile>
inline void load_tile(const void* from, int64_t step) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(step), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* to, int64_t step) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(step), "i"(kTile) : "memory");
}
// Adds to each 32-bit sum at (m, n) bytes 4k to 4k + 3 of row m of A times bytes 4n to 4n + 3 of row k of B, over k.
template <int kSums, int kA, int kB>
inline void dot_tiles() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}
// Adds to each float at (m, n) numbers 2k and 2k + 1 of row m of A times those at 2n and 2n + 1 of row k of B, over k;
// A and B are bfloat16.
template <int kSums, int kA, int kB>
inline void dot_halves() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kA), "i"(kB));
}

#else

struct TileModel {
  TileShapes shapes;
  uint8_t bytes[8][kTileRows][kTileRowBytes];
};
inline thread_local TileModel tile_model;

inline bool enable_tiles() { return true; }
inline void set_tiles(const TileShapes& shapes) {
  tile_model.shapes = shapes;
  std::memset(tile_model.bytes, 0, sizeof tile_model.bytes);
}
inline void release_tiles() { set_tiles({}); }

template <int kTile>
inline void zero_tile() {
  std::memset(tile_model.bytes[kTile], 0, sizeof tile_model.bytes[kTile]);
}
template <int kTile>
inline void load_tile(const void* from, int64_t step) {
  zero_tile<kTile>();
  for (int row = 0; row < tile_model.shapes.rows[kTile]; ++row) {
    const uint8_t* source = static_cast<const uint8_t*>(from) + row * step;
    std::memcpy(tile_model.bytes[kTile][row], source, tile_model.shapes.row_bytes[kTile]);
  }
}
template <int kTile>
inline void store_tile(void* to, int64_t step) {
  for (int row = 0; row < tile_model.shapes.rows[kTile]; ++row) {
    uint8_t* target = static_cast<uint8_t*>(to) + row * step;
    std::memcpy(target, tile_model.bytes[kTile][row], tile_model.shapes.row_bytes[kTile]);
  }
}
template <int kSums, int kA, int kB>
inline void dot_tiles() {
  TileModel& model = tile_model;
  for (int m = 0; m < model.shapes.rows[kSums]; ++m) {
    for (int n = 0; n < model.shapes.row_bytes[kSums] / 4; ++n) {
      int32_t sum;
      std::memcpy(&sum, &model.bytes[kSums][m][4 * n], sizeof sum);
      for (int k = 0; k < model.shapes.row_bytes[kA] / 4; ++k) {
        for (int i = 0; i < 4; ++i) {
          sum += int8_t(model.bytes[kA][m][4 * k + i]) * int8_t(model.bytes[kB][k][4 * n + i]);
        }
      }
      std::memcpy(&model.bytes[kSums][m][4 * n], &sum, sizeof sum);
    }
  }
}

// Adds to each float at (m, n) numbers 2k and 2k + 1 of row m of A times those at 2n and 2n + 1 of row k of B, over k;
// A and B are bfloat16. The unit takes its terms in another order.
template <int kSums, int kA, int kB>
inline void dot_halves() {
  TileModel& model = tile_model;
  auto half = [](const uint8_t* from) {
    const uint32_t bits = uint32_t(from[0] | from[1] << 8) << 16;
    float number;
    std::memcpy(&number, &bits, sizeof number);
    return number;
  };
  for (int m = 0; m < model.shapes.rows[kSums]; ++m) {
    for (int n = 0; n < model.shapes.row_bytes[kSums] / 4; ++n) {
      float sum;
      std::memcpy(&sum, &model.bytes[kSums][m][4 * n], sizeof sum);
      for (int k = 0; k < model.shapes.row_bytes[kA] / 4; ++k) {
        for (int i = 0; i < 4; i += 2) sum += half(&model.bytes[kA][m][4 * k + i]) * half(&model.bytes[kB][k][4 * n + i]);
      }
      std::memcpy(&model.bytes[kSums][m][4 * n], &sum, sizeof sum);
    }
  }
}

#endif

}  // namespace nvila
