// Carries out the tile instructions of AMX on a processor that has none: each raises SIGILL, and a handler does what
// Intel's manual says (Software Developer's Manual, volume 2: LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TILERELEASE,
// TDPBF16PS), from its bytes and the registers that it names. What the processor refuses ends the program.
#pragma once

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>

namespace amx {

struct Tile {
    int rows, row_bytes;
    unsigned char data[16][64];
};

inline thread_local Tile tiles[8];
inline thread_local bool configured = false;
// Of all threads.
inline long executed = 0;

[[noreturn]] inline void refuse(const char* why, const unsigned char* code) {
    std::fprintf(stderr, "%s: %02x %02x %02x %02x %02x\n", why, code[0], code[1], code[2], code[3], code[4]);
    std::_Exit(1);
}

struct Registers {
    const greg_t* values;
    std::uint64_t operator[](int number) const {
        static constexpr int PLACE[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                          REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
        return static_cast<std::uint64_t>(values[PLACE[number]]);
    }
};

inline float number(const unsigned char* half) {
    const std::uint32_t bits = static_cast<std::uint32_t>(half[0] | half[1] << 8) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float flushed(float a) { return std::abs(a) < __FLT_MIN__ ? __builtin_copysignf(0.0f, a) : a; }

// dest[m][n] += sum_k a[m][k] b[k][n] over pairs, the two of a pair summed apart.
inline void multiply(Tile& dest, const Tile& a, const Tile& b) {
    for (int m = 0; m < dest.rows; ++m) {
        float even[16] = {}, odd[16] = {};
        for (int k = 0; k < a.row_bytes / 4; ++k) {
            for (int n = 0; n < dest.row_bytes / 4; ++n) {
                const unsigned char *x = a.data[m] + 4 * k, *y = b.data[k] + 4 * n;
                even[n] = flushed(__builtin_fmaf(flushed(number(x)), flushed(number(y)), even[n]));
                odd[n] = flushed(__builtin_fmaf(flushed(number(x + 2)), flushed(number(y + 2)), odd[n]));
            }
        }
        for (int n = 0; n < dest.row_bytes / 4; ++n) {
            float sum;
            std::memcpy(&sum, dest.data[m] + 4 * n, sizeof sum);
            sum = flushed(flushed(sum) + flushed(even[n] + odd[n]));
            std::memcpy(dest.data[m] + 4 * n, &sum, sizeof sum);
        }
    }
}

inline void on_illegal(int, siginfo_t*, void* context) {
    greg_t* const values = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    const unsigned char* const code = reinterpret_cast<const unsigned char*>(values[REG_RIP]);
    const Registers registers{values};
    // VEX of three bytes, map 0F38, W0, 128 bits.
    if (code[0] != 0xC4 || (code[1] & 31) != 2 || (code[2] & 0x84) != 0) refuse("no tile instruction", code);
    const int high_reg = (~code[1] >> 7 & 1) << 3, high_index = (~code[1] >> 6 & 1) << 3;
    const int high_base = (~code[1] >> 5 & 1) << 3, third = ~code[2] >> 3 & 15, prefix = code[2] & 3;
    const int opcode = code[3], mode = code[4] >> 6, reg = (code[4] >> 3 & 7) | high_reg, rm = code[4] & 7;
    const unsigned char* next = code + 5;
    std::uint64_t address = 0, stride = 0;
    if (mode != 3) {
        int base = rm | high_base;
        if (rm == 4) {
            const int sib = *next++, index = (sib >> 3 & 7) | high_index;
            base = (sib & 7) | high_base;
            if (index != 4) stride = registers[index] << (sib >> 6);
        }
        if (mode == 0 && (base & 7) == 5) refuse("an address without a base", code);
        address = registers[base];
        if (mode == 1) address += static_cast<std::int64_t>(static_cast<signed char>(*next++));
        if (mode == 2) {
            std::int32_t far;
            std::memcpy(&far, next, sizeof far);
            next += sizeof far;
            address += static_cast<std::int64_t>(far);
        }
    }
    enum { NONE, X66, XF3, XF2 };
    if (opcode == 0x49 && prefix == NONE && mode != 3) {
        unsigned char config[64];
        std::memcpy(config, reinterpret_cast<const void*>(address), sizeof config);
        if (config[0] != 1 || config[1] != 0) refuse("a palette that is unknown", code);
        for (int i = 2; i < 64; ++i) {
            const bool used = (i >= 16 && i < 32) || (i >= 48 && i < 56);
            if (!used && config[i] != 0) refuse("reserved bytes of a configuration are not zero", code);
        }
        for (int i = 0; i < 8; ++i) {
            const int row_bytes = config[16 + 2 * i] | config[17 + 2 * i] << 8, rows = config[48 + i];
            if (row_bytes > 64 || rows > 16 || (row_bytes == 0) != (rows == 0)) refuse("a tile of no such size", code);
            tiles[i] = {rows, row_bytes, {}};
        }
        configured = true;
    } else if (opcode == 0x49 && prefix == NONE && code[4] == 0xC0) {
        for (Tile& tile : tiles) tile = {};
        configured = false;
    } else if (!configured || reg > 7) {
        refuse("tiles are not configured, or have no such number", code);
    } else if (opcode == 0x49 && prefix == XF2 && mode == 3 && rm == 0) {
        std::memset(tiles[reg].data, 0, sizeof tiles[reg].data);
    } else if (opcode == 0x4B && (prefix == XF2 || prefix == XF3) && mode != 3 && rm == 4) {
        Tile& tile = tiles[reg];
        if (prefix == XF2) std::memset(tile.data, 0, sizeof tile.data);
        for (int r = 0; r < tile.rows; ++r) {
            unsigned char* const row = reinterpret_cast<unsigned char*>(address + r * stride);
            if (prefix == XF2) std::memcpy(tile.data[r], row, tile.row_bytes);
            if (prefix == XF3) std::memcpy(row, tile.data[r], tile.row_bytes);
        }
    } else if (opcode == 0x5C && prefix == XF3 && mode == 3) {
        const Tile &a = tiles[rm | high_base], &b = tiles[third];
        // What the processor refuses.
        if (reg == (rm | high_base) || reg == third || third == (rm | high_base) || a.rows != tiles[reg].rows ||
            a.row_bytes != 4 * b.rows || b.row_bytes != tiles[reg].row_bytes) {
            refuse("tiles that do not fit each other", code);
        }
        multiply(tiles[reg], a, b);
    } else {
        refuse("a tile instruction that is unknown", code);
    }
    __atomic_fetch_add(&executed, 1, __ATOMIC_RELAXED);
    values[REG_RIP] = reinterpret_cast<greg_t>(next);
}

inline void carry_out() {
    struct sigaction action = {};
    action.sa_sigaction = on_illegal;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGILL, &action, nullptr);
}

}  // namespace amx
