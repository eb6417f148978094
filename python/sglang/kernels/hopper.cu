// Instructions of Hopper GPUs as functions: what stands before fragments.cu. FP16: 1 for float16, 0 for bfloat16; ROWS: of
// the right operand of a product of four warps, whose text the WGMMA_ macros have.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct Four { u32 x, y, z, w; };
struct Two { u32 x, y; };
struct Sums { float of[4]; };
struct alignas(64) Map { u64 of[16]; };

#ifdef EMULATED // tests run the kernels on a CPU, with instructions of their own
#include "emulated.h"
#else
#define DEVICE static __device__ __forceinline__
#if FP16
#define TYPE "f16"
#else
#define TYPE "bf16"
#endif

DEVICE u32 address(const void* shared) { return (u32)__cvta_generic_to_shared(shared); }

DEVICE Four load16(u32 from) {
    Four v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from));
    return v;
}

DEVICE Two load8(u32 from) {
    Two v;
    asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(from));
    return v;
}

DEVICE float load4(u32 from) {
    float v;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(v) : "r"(from));
    return v;
}

DEVICE void store4(u32 to, float v) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(v) : "memory"); }

DEVICE void store4(u32 to, u32 v) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(v) : "memory"); }

DEVICE void store16(u32 to, Four v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}

// Of the weight, which is read once.
DEVICE Four stream16(const u8* from) {
    Four v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

DEVICE Two stream8(const u8* from) {
    Two v;
    asm volatile("ld.global.nc.L1::no_allocate.v2.b32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(from));
    return v;
}

DEVICE u32 among(u32 a, u32 bits) { // nibbles 0 and 4, among other bits, in one instruction
    u32 v;
    asm("lop3.b32 %0, %1, 0x000f000f, %2, 0xea;" : "=r"(v) : "r"(a), "r"(bits)); // (a & b) | c
    return v;
}

DEVICE u32 less(u32 a, u32 b) {
    u32 v;
    asm("sub.rn." TYPE "x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}

DEVICE u32 times(u32 a, u32 b) {
    u32 v;
    asm("mul.rn." TYPE "x2 %0, %1, %2;" : "=r"(v) : "r"(a), "r"(b));
    return v;
}

DEVICE u32 pair(float low, float high) { // rounded
    u32 v;
    asm("cvt.rn." TYPE "x2.f32 %0, %1, %2;" : "=r"(v) : "f"(high), "f"(low));
    return v;
}

DEVICE float wide(u16 a) {
    float v;
    if (FP16) asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(a));
    else v = __uint_as_float((u32)a << 16);
    return v;
}

DEVICE void barrier(u32 at, u32 count) { asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(at), "r"(count)); }

DEVICE void barriers_made() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

DEVICE void arrive(u32 at) { asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(at) : "memory"); }

DEVICE void expect(u32 at, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
}

DEVICE void wait(u32 at, u32 phase) {
    u32 done;
    do {
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                     : "=r"(done) : "r"(at), "r"(phase) : "memory");
    } while (!done);
}

DEVICE void fetch(u32 to, const u8* from, u32 bytes, u32 then) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(to), "l"(from), "r"(bytes), "r"(then) : "memory");
}

DEVICE void fetch_box(u32 to, const Map* map, int column, int row, u32 then) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3}], [%4];" ::"r"(to), "l"(map), "r"(column), "r"(row), "r"(then) : "memory");
}

// Of the 8 warps that multiply.
DEVICE void multipliers_here() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

DEVICE void signal(u32* flag) {
    __threadfence();
    asm volatile("st.release.gpu.global.u32 [%0], 1;" ::"l"(flag) : "memory");
}

// And take it back, for the next launch.
DEVICE void wait_signal(u32* flag) {
    u32 there;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(there) : "l"(flag) : "memory");
    while (!there);
    *flag = 0;
}

DEVICE Sums fresh16(const Sums* from) { // what another block has written
    Sums v;
    asm volatile("ld.global.cg.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.of[0]), "=f"(v.of[1]), "=f"(v.of[2]), "=f"(v.of[3]) : "l"(from) : "memory");
    return v;
}

// 8 rows of 8, a lane with two of a row: rows become columns.
DEVICE u32 turned(u32 a) {
    u32 v;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(v) : "r"(a));
    return v;
}

DEVICE void others_may_start() { asm volatile("griddepcontrol.launch_dependents;"); }
DEVICE void others_have_ended() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

DEVICE void matrices(u32 (&v)[4], u32 from) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "r"(from));
}

DEVICE void mma(float (&d)[4], const u32 (&a)[4], u32 b, u32 c) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                 "{%8, %9}, {%0, %1, %2, %3};" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b), "r"(c));
}

#ifdef ROWS
DEVICE void wgmma(float (&d)[ROWS / 8][4], const u32* a, u64 b, int add) {
    asm volatile("{ .reg .pred p; setp.ne.b32 p, " WGMMA_ADD ", 0; wgmma.mma_async.sync.aligned.m64n" WGMMA_N "k16.f32." TYPE "."
                 TYPE " {" WGMMA_PLACES "}, {" WGMMA_A "}, " WGMMA_B ", p, 1, 1, 0; }"
                 : WGMMA_D : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));
}
// 3 * 168 registers go round between 3 groups of warps.
DEVICE void fewer_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 24;"); }
DEVICE void more_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 240;"); }
DEVICE void wgmma_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int LEFT> DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
}
#endif
#endif // EMULATED
