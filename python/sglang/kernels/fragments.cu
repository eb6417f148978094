// Products with weights of 4 bits, laid out as `fragments.py` says: compiled by cuda_code.py for one set of numbers.
//
// FP16: 1 for float16, 0 for bfloat16. EACH: groups in 128 columns. A piece is 16 rows by 128 columns of the weight:
// SIZE bytes, of which lane l of a warp owns 16 in each half of 64 columns, a word for each 16 of them; nibbles of a
// word are in the order in which matrix units take them. A nibble under the bits of 128.0 (bfloat16) or 1024.0
// (float16) is that number plus the code, exactly, and less 128 + zero it is the weight's step.

#define SIZE (1024 + 64 * EACH)
#define MAGIC (FP16 ? 0x64006400u : 0x43004300u)

DEVICE float both(u32 a) { return wide((u16)a) + wide(a >> 16); }
DEVICE u32 twice(float a) { return pair(a, a); }
DEVICE u16 narrow(float a) { return (u16)twice(a); }

// Codes of 4 registers of a matrix product, each above 128 or 1024, from a word.
DEVICE void apart(u32* a, u32 word) {
#pragma unroll
    for (int i = 0; i < 4; i++) a[i] = among(word >> (4 * i), MAGIC);
}

// A step: the zero is the lowest byte of the scale, which is as good with it.
DEVICE u32 zeros(u32 step) { return __byte_perm(step, MAGIC >> 24, 0x4040); } // above what codes are above
DEVICE float zero(u32 step) {
    const float v = __uint_as_float(__byte_perm(step, 0x43, 0x4055)); // above 128
    return FP16 ? v + 896.f : v;
}
DEVICE float scale(u32 step) { return __uint_as_float(step); }

#ifdef WRITE
// The weight as it is, [N, pieces * 128]: a warp writes a piece.
extern "C" __global__ void __launch_bounds__(256) spread(const u8* w, u16* out, int N, int pieces) {
    extern __shared__ __align__(128) u8 memory[];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
    const u8* at = w + (((long long)blockIdx.x * pieces + blockIdx.z) * 8 + warp) * SIZE;
    const u32 room = address(memory) + warp * 16 * 272; // rows of 256 bytes, apart so that lanes do not meet
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const Four q = *(const Four*)(at + h * 512 + lane * 16);
        const u32 four[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const Two step = *(const Two*)(at + 1024 + (h * 4 + c) * EACH / 8 * 64 + row * 8);
            u32 v[4];
            apart(v, four[c]);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 own = i % 2 ? step.y : step.x, steps = less(v[i], zeros(own));
                const float by = scale(own);
                const int column = h * 64 + c * 16 + i / 2 * 8 + lane % 4 * 2;
                store4(room + (row + i % 2 * 8) * 272 + column * 2, pair(wide((u16)steps) * by, wide(steps >> 16) * by));
            }
        }
    }
    __syncwarp();
    const int n = (blockIdx.x * 8 + warp) * 16;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int r = i * 2 + lane / 16, column = lane % 16 * 8;
        if (n + r < N)
            *(Four*)(out + (n + r) * (long long)pieces * 128 + blockIdx.z * 128 + column) = load16(room + r * 272 + column * 2);
    }
}
#endif

#ifdef WARPS
// For a few rows. A block multiplies 16 rows of the weight at a time (GATED: and as many of the second half) with all
// of x, which it keeps; its warps share the columns.
DEVICE float act(float v) {
    if (ACT == SILU) return v / (1.f + __expf(-v));
    if (ACT == GELU) return 0.5f * v * (1.f + erff(v * 0.70710678f));
    float u = 0.79788456f * (v + 0.044715f * v * v * v);
    return v / (1.f + __expf(-2.f * u)); // 1 + tanh(u) = 2 / (1 + exp(-2 u))
}

extern "C" __global__ void __launch_bounds__(32 * WARPS, RESIDENT)
few(const u16* x, long long stride, const u8* w, const u16* bias, const u16* other, u16* out, int M, int N, int pieces,
    int items) {
    extern __shared__ __align__(128) u8 memory[];
    const int GATED = ACT >= 0, TILES = GATED ? 2 : 1, K = pieces * 128, STEP = 8 * SIZE;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4;
    const u32 sums = address(memory), totals = sums + 2 * WARPS * 512, rows = totals + pieces * EACH * 32;
    const int first = pieces * warp / WARPS, mine = pieces * (warp + 1) / WARPS - first;
    const int from = (long long)items * blockIdx.x / gridDim.x;
    const int count = ((int)((long long)items * (blockIdx.x + 1) / gridDim.x) - from) * TILES;
    const int half = N / 32; // tiles of 16 rows before the second half

    const u32 behind = 1024 + row * 8 - lane * 16; // where a lane's steps are
    // A warp's pieces of a tile come in rounds of DEPTH; those of the next round are on their way.
    Four codes[DEPTH][2];
    Two steps[DEPTH][EACH];
    auto load = [&](int d, u32 at) {
        const u8* own = w + at;
        const u8* own_steps = w + (at + behind);
        codes[d][0] = stream16(own + d * STEP), codes[d][1] = stream16(own + d * STEP + 512);
#pragma unroll
        for (int e = 0; e < EACH; e++) steps[d][e] = stream8(own_steps + d * STEP + e * 64);
    };
    auto tile_of = [&](int j) { return GATED ? (j % 2 ? half : 0) + from + j / 2 : from + j; };
    auto start = [&](int j) {
        const int tile = tile_of(j);
        return (u32)((tile / 8 * pieces + first) * 8 + tile % 8) * SIZE + lane * 16;
    };
    others_may_start();
#pragma unroll
    for (int d = 0; d < DEPTH; d++)
        if (d < mine) load(d, start(0));
    others_have_ended();
    for (int start = 0; start < M * K / 8; start += 32 * WARPS) {
        const int i = start + threadIdx.x, m = i / (K / 8), k = i % (K / 8) * 8;
        const bool there = m < M;
        const Four v = there ? *(const Four*)(x + m * stride + k) : Four{0, 0, 0, 0};
        // Sums of x over a group, by which what codes are above is taken off.
        float sum = both(v.x) + both(v.y) + both(v.z) + both(v.w);
#pragma unroll
        for (int with = 1; with < 16 / EACH; with *= 2) sum += __shfl_xor_sync(~0u, sum, with);
        if (!there) continue;
        store16(rows + (m * (K + 8) + k) * 2, v);
        if (k % (128 / EACH) == 0) store4(totals + k / (128 / EACH) * 32 + m * 4, sum);
    }
    __syncthreads();

    // Of 8 rows those that x lacks are its last one, and go nowhere.
    const u32 own = rows + (min(lane % 8, M - 1) * (K + 8) + first * 128 + lane / 8 * 8) * 2;
    const u32 total = totals + first * EACH * 32 + lane % 4 * 8;
    float gate = 0.f;
    for (int j = 0; j < count; j++) {
        float acc[4] = {0.f, 0.f, 0.f, 0.f};
        for (int p = 0; p < mine; p += DEPTH) {
            const bool last = p + DEPTH >= mine;
            const u32 next = last ? start(min(j + 1, count - 1)) : start(j) + (p + DEPTH) * STEP;
            const int there = last ? (j + 1 < count ? mine : 0) : mine - p - DEPTH;
#pragma unroll
            for (int d = 0; d < DEPTH; d++) {
                if (p + d < mine) {
#pragma unroll
                    for (int e = 0; e < EACH; e++) {
                        float part[4] = {0.f, 0.f, 0.f, 0.f}, odd[4] = {0.f, 0.f, 0.f, 0.f}; // two need not wait
#pragma unroll
                        for (int c = e * (4 / EACH); c < (e + 1) * (4 / EACH); c++) { // 32 columns
                            u32 v[4];
                            matrices(v, own + ((p + d) * 128 + c * 32) * 2);
#pragma unroll
                            for (int s = 0; s < 2; s++) {
                                const Four& four = codes[d][c / 2];
                                u32 a[4];
                                apart(a, c % 2 ? (s ? four.w : four.z) : (s ? four.y : four.x));
                                mma(s ? odd : part, a, v[2 * s], v[2 * s + 1]);
                            }
                        }
                        const Two pair = load8(total + ((p + d) * EACH + e) * 32);
                        const float left = __uint_as_float(pair.x), right = __uint_as_float(pair.y);
                        const float low = zero(steps[d][e].x), high = zero(steps[d][e].y);
                        acc[0] += (part[0] + odd[0] - low * left) * scale(steps[d][e].x);
                        acc[1] += (part[1] + odd[1] - low * right) * scale(steps[d][e].x);
                        acc[2] += (part[2] + odd[2] - high * left) * scale(steps[d][e].y);
                        acc[3] += (part[3] + odd[3] - high * right) * scale(steps[d][e].y);
                    }
                }
                if (d < there) load(d, next);
            }
        }
        const u32 place = sums + j % 2 * WARPS * 512; // [warp][8 of x][16 of the weight]
#pragma unroll
        for (int i = 0; i < 4; i++)
            store4(place + warp * 512 + (lane % 4 * 2 + i % 2) * 64 + (row + i / 2 * 8) * 4, acc[i]);
        __syncthreads();
        const int m = threadIdx.x / 16, n = tile_of(j) * 16 + threadIdx.x % 16;
        if (m >= M || n >= N) continue;
        float y = bias ? wide(bias[n]) : 0.f;
#pragma unroll
        for (int i = 0; i < WARPS; i++) y += load4(place + i * 512 + threadIdx.x * 4);
        if (GATED && j % 2 == 0) {
            gate = act(y);
            continue;
        }
        const long long to = GATED ? (long long)m * (N / 2) + n - N / 2 : (long long)m * N + n;
        if (GATED) y *= gate;
        if (other) y += wide(other[to]);
        out[to] = narrow(y);
    }
}
#endif

#ifdef ROWS
// For more rows: 128 of the weight by ROWS of x are a tile. A warp fetches pieces and the columns of x that go with them;
// two groups of four warps, with 64 rows of the weight each, take them apart into the left operand of the matrix units.
// Pieces of all tiles, one after another, are shared out evenly. Where a share begins within a tile, its sums are left
// for the block that began the tile, which comes to its end later, and adds them up in order.
#define X_BYTES (ROWS * 256)
#define W_BYTES (8 * SIZE)
#define AT_ONCE (ROWS < 64 ? ROWS / 8 : 8) // of the sums of a block
#define WIDE (ROWS < 32 ? 8 / AT_ONCE : 1) // blocks

extern "C" __global__ void __launch_bounds__(ROWS > 128 ? 384 : 288, RESIDENT)
many(const __grid_constant__ Map map, const u8* w, const u16* bias, const u16* other, u16* out, Sums* sums, u32* flags,
     int M, int N, int pieces, int tiles, int units) {
    extern __shared__ u8 memory[];
    const u32 boxes = (address(memory) + 1023) & ~1023u, words = boxes + STAGES * X_BYTES;
    const u32 full = words + STAGES * W_BYTES, empty = full + STAGES * 8;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    auto share = [&](int block) { return (int)((long long)units * block / gridDim.x); };
    const int from = share(blockIdx.x), upto = share(blockIdx.x + 1);

    others_may_start();
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) barrier(full + s * 8, 1), barrier(empty + s * 8, 8);
        barriers_made();
    }
    others_have_ended();
    __syncthreads();
    int stage = 0, phase = 0;
    auto next = [&] { if (++stage == STAGES) stage = 0, phase ^= 1; };
    if (warp >= 8) {
        if (ROWS > 128) fewer_registers();
        if (warp > 8 || lane) return;
        for (int u = from; u < upto; u++, next()) {
            const int tile = u / pieces, p = u % pieces, first = tile / tiles * ROWS;
            const u32 bar = full + stage * 8, box = boxes + stage * X_BYTES;
            wait(empty + stage * 8, phase ^ 1);
            expect(bar, W_BYTES + X_BYTES);
            fetch(words + stage * W_BYTES, w + ((long long)(tile % tiles) * pieces + p) * W_BYTES, W_BYTES, bar);
            fetch_box(box, &map, p * 128, first, bar);
            fetch_box(box + ROWS * 128, &map, p * 128 + 64, first, bar);
        }
        return;
    }
    if (ROWS > 128) more_registers();
    for (int u = from; u < upto;) {
        const int tile = u / pieces, begin = u - tile * pieces, count = min(pieces - begin, upto - u);
        float acc[ROWS / 8][4]; // set by the first product: a zero from elsewhere would make them all wait for each other
        int last = -1; // the stage whose products may be under way
        for (int p = 0; p < count; p++, next()) {
            wait(full + stage * 8, phase);
            const u32 at = words + stage * W_BYTES + warp * SIZE;
            u32 a[2][16], low[EACH], high[EACH], by[EACH], high_by[EACH];
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                const Two step = load8(at + 1024 + e * 64 + lane / 4 * 8);
                low[e] = zeros(step.x), high[e] = zeros(step.y);
                by[e] = twice(scale(step.x)), high_by[e] = twice(scale(step.y));
            }
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const Four q = load16(at + h * 512 + lane * 16);
                const u32 four[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
                for (int c = 0; c < 4; c++) { // 16 columns
                    const int e = (h * 4 + c) * EACH / 8;
                    u32* v = a[h] + c * 4;
                    apart(v, four[c]);
                    v[0] = times(less(v[0], low[e]), by[e]), v[1] = times(less(v[1], high[e]), high_by[e]);
                    v[2] = times(less(v[2], low[e]), by[e]), v[3] = times(less(v[3], high[e]), high_by[e]);
                }
                // Rows of 128 bytes, 8 of them 1024 apart; 16-byte chunks are exchanged by row (1 << 62).
                const u32 box = boxes + stage * X_BYTES + h * ROWS * 128;
                const u64 b = (u64)1 << 62 | (u64)64 << 32 | (u64)1 << 16 | box >> 4;
                wgmma_begin();
#pragma unroll
                for (int c = 0; c < 4; c++) wgmma(acc, a[h] + c * 4, b + c * 2, p > 0 || h + c > 0);
                wgmma_end();
                wgmma_wait<1>(); // what came before these
                if (h == 0 && last >= 0 && lane == 0) arrive(empty + last * 8);
            }
            last = stage;
        }
        wgmma_wait<0>();
        if (lane == 0) arrive(empty + last * 8);
        u += count;

        if (begin > 0) { // the first of this block's tiles: another block began it
            Sums* own = sums + (long long)blockIdx.x * ROWS * 32 + threadIdx.x;
#pragma unroll
            for (int j = 0; j < ROWS / 8; j++) own[j * 256] = {{acc[j][0], acc[j][1], acc[j][2], acc[j][3]}};
            __threadfence();
            multipliers_here();
            if (threadIdx.x == 0) signal(flags + blockIdx.x);
            continue;
        }
        int others = 0; // blocks that left sums of this tile
        while (share(blockIdx.x + 1 + others) < (tile + 1) * pieces) others++;
        if ((int)threadIdx.x < others) wait_signal(flags + blockIdx.x + 1 + threadIdx.x);
        multipliers_here();
        const Sums* theirs = sums + (long long)(blockIdx.x + 1) * ROWS * 32 + threadIdx.x;
        for (int b = 0; b < others; b += WIDE)
#pragma unroll
            for (int j = 0; j < ROWS / 8; j += AT_ONCE) { // many loads are on their way together
                Sums more[WIDE][AT_ONCE];
#pragma unroll
                for (int i = 0; i < WIDE * AT_ONCE; i++)
                    if (b + i / AT_ONCE < others)
                        more[i / AT_ONCE][i % AT_ONCE] =
                            fresh16(theirs + (b + i / AT_ONCE) * ROWS * 32 + (j + i % AT_ONCE) * 256);
#pragma unroll
                for (int i = 0; i < WIDE * AT_ONCE * 4; i++)
                    if (b + i / (AT_ONCE * 4) < others)
                        acc[j + i / 4 % AT_ONCE][i % 4] += more[i / (AT_ONCE * 4)][i / 4 % AT_ONCE].of[i % 4];
            }
        // A lane has 2 of x by rows n and n + 8 of the weight; it reads and writes 2 of the weight side by side.
        const int n = tile % tiles * 128 + warp * 16 + lane / 4, to = n - lane / 4 + lane % 4 * 2;
        const float more[2] = {bias && n < N ? wide(bias[n]) : 0.f, bias && n + 8 < N ? wide(bias[n + 8]) : 0.f};
        int m = tile / tiles * ROWS + lane / 4;
        long long at = (long long)m * N + to;
#pragma unroll
        for (int j = 0; j < ROWS / 8; j++, m += 8, at += 8 * N)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const bool there = m < M && to + half * 8 < N;
                float y = acc[j][half * 2] + more[half], z = acc[j][half * 2 + 1] + more[half];
                if (other) {
                    const u32 given = turned(there ? *(const u32*)(other + at + half * 8) : 0);
                    y += wide((u16)given), z += wide(given >> 16);
                }
                const u32 both = turned(pair(y, z));
                if (there) *(u32*)(out + at + half * 8) = both;
            }
    }
}
#endif
