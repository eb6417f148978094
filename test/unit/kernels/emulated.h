// The instructions of hopper.cu, on a CPU: a block's threads are fibers that take turns where they wait, and
// what is fetched comes late, in any order. Sums are in float32 as they come; nothing is said about time.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <ucontext.h>
#include <vector>

#define DEVICE static inline
#define __global__
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct Place { unsigned x, y, z; };
static Place threadIdx, blockIdx, gridDim;
const u32 ROOM = 227 << 10;
u8 memory[8 * ROOM] __attribute__((aligned(1024))); // of the blocks that run at once
using std::min;

struct Fiber { ucontext_t at; std::vector<char> stack; bool ended; };
struct Bar { int count, left, phase; long bytes; };
struct Meeting { int arrived, turn; };
struct Warp { u32 a[32][4], b[32]; Meeting meeting; };
static std::vector<Fiber> fibers;
static ucontext_t scheduler;
static std::map<u32, Bar> bars;
static std::vector<std::function<void()>> fetches;
static Warp all_warps[8][12];
static Meeting blocks[8], multipliers[8];
static int threads, here, live; // here: of the blocks that run at once

DEVICE void yield() {
    Place thread = threadIdx, block = blockIdx;
    int mine = here;
    swapcontext(&fibers[mine * threads + thread.x].at, &scheduler);
    threadIdx = thread, blockIdx = block, here = mine;
}

DEVICE void all_here(Meeting& m, int count) {
    int mine = m.turn;
    m.arrived++;
    while (m.turn == mine)
        if (m.arrived == count) m.arrived = 0, m.turn++;
        else yield();
}

DEVICE Warp& own_warp() { return all_warps[here][threadIdx.x / 32]; }
DEVICE u8* own_memory() { return memory + here * ROOM; }
DEVICE void __syncthreads() { all_here(blocks[here], threads); }
DEVICE void __syncwarp() { all_here(own_warp().meeting, 32); }
DEVICE void multipliers_here() { all_here(multipliers[here], 256); }
DEVICE void __threadfence() {}
DEVICE void signal(u32* flag) { *flag = 1; }
DEVICE void wait_signal(u32* flag) {
    while (!*flag) yield();
    *flag = 0;
}
DEVICE u32 address(const void* p) { return (const u8*)p - memory; }
template <class T> T read(u32 at) { T v; if (at % sizeof(T)) abort(); memcpy(&v, own_memory() + at, sizeof(T)); return v; }
DEVICE Four load16(u32 at) { return read<Four>(at); }
DEVICE Two load8(u32 at) { return read<Two>(at); }
DEVICE Sums fresh16(const Sums* from) { return *from; }
DEVICE u32 __byte_perm(u32 a, u32 b, u32 s) {
    u64 both = a | (u64)b << 32;
    u32 v = 0;
    for (int i = 0; i < 4; i++) v |= (u32)(both >> (s >> 4 * i & 7) * 8 & 255) << 8 * i;
    return v;
}
DEVICE float load4(u32 at) { return read<float>(at); }
DEVICE void store4(u32 at, float v) { memcpy(own_memory() + at, &v, 4); }
DEVICE void store4(u32 at, u32 v) { memcpy(own_memory() + at, &v, 4); }
DEVICE void store16(u32 at, Four v) { if (at % 16) abort(); memcpy(own_memory() + at, &v, 16); }
DEVICE Four stream16(const u8* at) { if ((u64)at % 16) abort(); Four v; memcpy(&v, at, 16); return v; }
DEVICE Two stream8(const u8* at) { Two v; memcpy(&v, at, 8); return v; }
DEVICE u32 among(u32 a, u32 bits) { return (a & 0x000f000f) | bits; }
DEVICE float __uint_as_float(u32 v) { float f; memcpy(&f, &v, 4); return f; }
#define __expf expf

DEVICE float wide(u16 a) {
    if (FP16) { _Float16 h; memcpy(&h, &a, 2); return h; }
    return __uint_as_float((u32)a << 16);
}

DEVICE u16 rounded(float f) {
    if (FP16) { _Float16 h = f; u16 v; memcpy(&v, &h, 2); return v; }
    u32 v; memcpy(&v, &f, 4);
    return (v + 0x7fff + (v >> 16 & 1)) >> 16;
}

DEVICE u32 pair(float low, float high) { return rounded(low) | (u32)rounded(high) << 16; }
DEVICE u32 less(u32 a, u32 b) { return pair(wide(a) - wide(b), wide(a >> 16) - wide(b >> 16)); }
DEVICE u32 times(u32 a, u32 b) { return pair(wide(a) * wide(b), wide(a >> 16) * wide(b >> 16)); }

DEVICE void barrier(u32 at, u32 count) { if (at % 8) abort(); bars[(u32)here << 20 | at] = {(int)count, (int)count, 0, 0}; }
DEVICE void barriers_made() {}
DEVICE void settle(Bar& b) { if (b.left == 0 && b.bytes == 0) b.phase ^= 1, b.left = b.count; }
DEVICE void arrive(u32 at) { Bar& b = bars.at((u32)here << 20 | at); if (b.left-- == 0) abort(); settle(b); }
DEVICE void expect(u32 at, u32 bytes) { bars.at((u32)here << 20 | at).bytes += bytes; arrive(at); }
DEVICE void wait(u32 at, u32 phase) { while (bars.at((u32)here << 20 | at).phase == (int)phase) yield(); }

DEVICE void later(u32 then, u32 bytes, std::function<void()> copy) {
    then |= (u32)here << 20;
    fetches.push_back([=] { copy(); Bar& b = bars.at(then); b.bytes -= bytes; settle(b); });
}
DEVICE void fetch(u32 to, const u8* from, u32 bytes, u32 then) {
    if (to % 16 || bytes % 16) abort();
    u8* place = own_memory() + to;
    memset(place, 0xff, bytes); // whoever still reads what was there learns of it
    later(then, bytes, [=] { memcpy(place, from, bytes); });
}

// of: address, rows, stride in bytes, rows of a box; 128 bytes a row, whose 16-byte chunks are exchanged.
DEVICE void fetch_box(u32 to, const Map* map, int column, int row, u32 then) {
    const u64* of = map->of;
    u8* box = own_memory() + to;
    memset(box, 0xff, of[3] * 128);
    later(then, of[3] * 128, [=] {
        for (u64 r = 0; r < of[3]; r++)
            for (u32 c = 0; c < 8; c++) {
                u8* place = box + r * 128 + (c ^ r % 8) * 16;
                if (row + r < of[1]) memcpy(place, (u8*)of[0] + (row + r) * of[2] + column * 2 + c * 16, 16);
                else memset(place, 0, 16);
            }
    });
}

DEVICE void others_may_start() {}
DEVICE void others_have_ended() {}
DEVICE void fewer_registers() {}
DEVICE void more_registers() {}
DEVICE void wgmma_begin() {}
DEVICE void wgmma_end() {}
template <int LEFT> void wgmma_wait() {}

DEVICE float __shfl_xor_sync(u32, float v, int with) {
    Warp& w = own_warp();
    int lane = threadIdx.x % 32;
    memcpy(&w.b[lane], &v, 4);
    __syncwarp();
    float other = __uint_as_float(w.b[lane ^ with]);
    __syncwarp();
    return other;
}

DEVICE void matrices(u32 (&v)[4], u32 from) {
    Warp& w = own_warp();
    int lane = threadIdx.x % 32;
    w.b[lane] = from;
    __syncwarp();
    for (int i = 0; i < 4; i++) v[i] = read<u32>(w.b[i * 8 + lane / 4] + lane % 4 * 4);
    __syncwarp();
}

// What two lanes of four columns hold of the left operand: 16 rows by 16.
DEVICE float left(Warp& w, int row, int k) {
    return wide(w.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2] >> k % 2 * 16);
}

DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    static u32 right[8][12][32][2];
    Warp& w = own_warp();
    auto& r = right[here][threadIdx.x / 32];
    int lane = threadIdx.x % 32;
    memcpy(w.a[lane], a, 16), r[lane][0] = b0, r[lane][1] = b1;
    __syncwarp();
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 16; k++) {
            int column = lane % 4 * 2 + i % 2;
            d[i] += left(w, lane / 4 + i / 2 * 8, k) * wide(r[column * 4 + k % 8 / 2][k / 8] >> k % 2 * 16);
        }
    __syncwarp();
}

DEVICE u32 turned(u32 a) {
    Warp& w = own_warp();
    int lane = threadIdx.x % 32;
    w.b[lane] = a;
    __syncwarp();
    u32 v = 0;
    for (int i = 0; i < 2; i++) v |= (w.b[(lane % 4 * 2 + i) * 4 + lane / 8] >> lane / 4 % 2 * 16 & 0xffff) << 16 * i;
    __syncwarp();
    return v;
}

#ifdef ROWS
DEVICE void wgmma(float (&d)[ROWS / 8][4], const u32* a, u64 b, int add) {
    if (b >> 62 != 1 || (b >> 32 & 0x3fff) != 64) abort();
    Warp& w = own_warp();
    int lane = threadIdx.x % 32;
    memcpy(w.a[lane], a, 16);
    __syncwarp();
    for (int i = 0; i < ROWS / 2; i++) {
        float sum = add ? d[i / 4][i % 4] : 0;
        int column = i / 4 * 8 + lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; k++) {
            u32 at = ((b & 0x3fff) << 4) + column * 128 + k * 2;
            sum += left(w, lane / 4 + i / 2 % 2 * 8, k) * wide(read<u16>(at ^ (at >> 7 & 7) << 4));
        }
        d[i / 4][i % 4] = sum;
    }
    __syncwarp();
}
#endif

static std::function<void()> body;
static void begin() {
    int me = here * threads + threadIdx.x;
    body();
    fibers[me].ended = true, live--;
    swapcontext(&fibers[me].at, &scheduler);
}

static int run(int first, int count) { // blocks along x, at once
    bars.clear();
    memset(memory, 0xff, sizeof memory);
    memset(blocks, 0, sizeof blocks), memset(multipliers, 0, sizeof multipliers), memset(all_warps, 0, sizeof all_warps);
    live = threads * count;
    fibers = std::vector<Fiber>(live);
    for (auto& f : fibers) {
        getcontext(&f.at);
        f.stack.resize(1 << 16), f.ended = false;
        f.at.uc_stack.ss_sp = f.stack.data(), f.at.uc_stack.ss_size = f.stack.size(), f.at.uc_link = nullptr;
        makecontext(&f.at, begin, 0);
    }
    for (int rounds = 0; live; rounds++) {
        if (rounds > 100000) return 1;
        for (unsigned i = 0; i < fibers.size(); i++) {
            if (fibers[i].ended) continue;
            threadIdx.x = i % threads, here = i / threads, blockIdx.x = first + here;
            swapcontext(&scheduler, &fibers[i].at);
        }
        if (!fetches.empty() && rand() % 2) {
            int one = rand() % fetches.size();
            auto now = fetches[one];
            fetches.erase(fetches.begin() + one);
            now();
        }
    }
    return fetches.empty() ? 0 : 2;
}

// 0, or 1 where threads wait for what never comes, or 2 where something comes for which nobody waits. together: blocks
// along x run at once.
static int launch(Place grid, int count, std::function<void()> kernel, bool together = false) {
    gridDim = grid, body = kernel, threads = count;
    for (blockIdx.z = 0; blockIdx.z < grid.z; blockIdx.z++)
        for (unsigned x = 0; x < grid.x; x += together ? grid.x : 1)
            if (int code = run(x, together ? grid.x : 1)) return code;
    return 0;
}
