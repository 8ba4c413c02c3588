/* simulated_warp.cu - see simulated_warp.h. The matrix instructions follow the tables of the PTX
 * ISA element by element, independent of the kernels' own arithmetic. */

#include "warp.h"

#include <deque>
#include <map>
#include <stdio.h>
#include <stdlib.h>
#include <ucontext.h>
#include <vector>

namespace {

enum { STACK_BYTES = 128 << 10 };

struct copy {
    uint32_t to;
    uint8_t bytes[16];
    uint32_t count;
};

struct fiber {
    ucontext_t context;
    std::vector<uint8_t> stack;
    simulated_op waits_at = SIM_NONE;
    simulated_exchange *exchange = nullptr;
    std::vector<copy> issued;
    std::deque<std::vector<copy>> committed; /* the oldest group first */
    bool done = false;
};

struct {
    simulated_grid grid;
    simulated_manner manner;
    void (*kernel)(const void *);
    const void *arg;
    uint32_t block[2];
    std::vector<fiber> fibers;
    std::vector<uint8_t> shared;
    uint32_t current;
    ucontext_t scheduler;
} cta;

std::map<uintptr_t, size_t> readable;

[[noreturn]] void die(const char *what) {
    fprintf(stderr, "simulated CTA (%u, %u), thread %u: %s\n", cta.block[0], cta.block[1],
        cta.current, what);
    abort();
}

void enter_fiber() {
    cta.kernel(cta.arg);
    fiber &self = cta.fibers[cta.current];
    self.done = true;
    if (!self.issued.empty() || !self.committed.empty()) {
        die("ends with copies under way");
    }
}

void start_fibers() {
    for (fiber &f : cta.fibers) {
        f.stack.resize(STACK_BYTES);
        getcontext(&f.context);
        f.context.uc_stack.ss_sp = f.stack.data();
        f.context.uc_stack.ss_size = STACK_BYTES;
        f.context.uc_link = &cta.scheduler;
        f.waits_at = SIM_NONE;
        f.done = false;
        makecontext(&f.context, enter_fiber, 0);
    }
}

/* ---- what lanes do together ---- */

float element(uint32_t reg, int half, bool bf16) {
    const uint16_t bits = (uint16_t)(half ? reg >> 16 : reg);
    if (bf16) {
        const uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, 4);
        return value;
    }
    __half h;
    memcpy(&h, &bits, 2);
    return __half2float(h);
}

void shuffle(simulated_exchange **lanes) {
    for (uint32_t l = 0; l < 32; l++) {
        lanes[l]->out[0] = lanes[l ^ lanes[l]->in[1]]->in[0];
    }
}

void load_matrices(simulated_exchange **lanes) {
    for (uint32_t matrix = 0; matrix < 4; matrix++) {
        uint16_t m[8][8];
        for (uint32_t row = 0; row < 8; row++) {
            const uint32_t at = lanes[matrix * 8 + row]->in[0];
            if (at % 16 != 0) {
                die("ldmatrix of an address that is no multiple of 16");
            }
            memcpy(m[row], simulated_shared(at, 16), 16);
        }
        for (uint32_t l = 0; l < 32; l++) {
            const uint32_t g = l / 4, t = l % 4;
            const uint16_t first = lanes[l]->flag ? m[2 * t][g] : m[g][2 * t];
            const uint16_t second = lanes[l]->flag ? m[2 * t + 1][g] : m[g][2 * t + 1];
            lanes[l]->out[matrix] = first | (uint32_t)second << 16;
        }
    }
}

void move_matrix(simulated_exchange **lanes) {
    uint16_t m[8][8];
    for (uint32_t l = 0; l < 32; l++) {
        m[l / 4][l % 4 * 2] = (uint16_t)lanes[l]->in[0];
        m[l / 4][l % 4 * 2 + 1] = (uint16_t)(lanes[l]->in[0] >> 16);
    }
    for (uint32_t l = 0; l < 32; l++) {
        lanes[l]->out[0] = m[l % 4 * 2][l / 4] | (uint32_t)m[l % 4 * 2 + 1][l / 4] << 16;
    }
}

void multiply(simulated_exchange **lanes) {
    float a[16][16], b[16][8];
    for (int l = 0; l < 32; l++) {
        const int g = l / 4, t = l % 4;
        const simulated_exchange &e = *lanes[l];
        for (int i = 0; i < 8; i++) { /* the ISA numbers elements a0 to a7 */
            const int row = (i / 2) % 2 == 0 ? g : g + 8;
            const int column = t * 2 + (i & 1) + (i >= 4 ? 8 : 0);
            a[row][column] = element(e.in[i / 2], i & 1, e.flag);
        }
        for (int i = 0; i < 4; i++) {
            const int row = t * 2 + (i & 1) + (i >= 2 ? 8 : 0);
            b[row][g] = element(e.in[4 + i / 2], i & 1, e.flag);
        }
    }
    for (int l = 0; l < 32; l++) {
        for (int i = 0; i < 4; i++) {
            const int row = i < 2 ? l / 4 : l / 4 + 8, column = l % 4 * 2 + (i & 1);
            float sum = lanes[l]->c[i];
            for (int k = 0; k < 16; k++) {
                sum += a[row][k] * b[k][column];
            }
            lanes[l]->c[i] = sum;
        }
    }
}

void perform(simulated_op op, simulated_exchange **lanes) {
    if (op == SIM_SHUFFLE) {
        shuffle(lanes);
    } else if (op == SIM_LOAD) {
        load_matrices(lanes);
    } else if (op == SIM_MOVE) {
        move_matrix(lanes);
    } else if (op == SIM_MMA) {
        multiply(lanes);
    }
}

/* ---- the scheduler ---- */

/* Lets a warp run until all of it has ended or waits for the CTA. */
void run_warp(uint32_t warp) {
    fiber *const lanes = &cta.fibers[warp * 32];
    for (;;) {
        for (uint32_t l = 0; l < 32; l++) {
            if (!lanes[l].done && lanes[l].waits_at == SIM_NONE) {
                cta.current = warp * 32 + l;
                swapcontext(&cta.scheduler, &lanes[l].context);
            }
        }
        simulated_exchange *exchanges[32];
        for (uint32_t l = 0; l < 32; l++) {
            exchanges[l] = lanes[l].exchange;
            if (lanes[l].done != lanes[0].done || lanes[l].waits_at != lanes[0].waits_at) {
                die("lanes of this warp have come to different instructions");
            }
        }
        if (lanes[0].done || lanes[0].waits_at == SIM_BARRIER) {
            return;
        }
        perform(lanes[0].waits_at, exchanges);
        for (uint32_t l = 0; l < 32; l++) {
            lanes[l].waits_at = SIM_NONE;
        }
    }
}

void run_cta() {
    const uint32_t warps = cta.grid.threads / 32;
    cta.shared.assign(cta.grid.shared_bytes, 0xff);
    start_fibers();
    for (;;) {
        for (uint32_t i = 0; i < warps; i++) {
            run_warp(cta.manner.last_warp_first ? warps - 1 - i : i);
        }
        uint32_t done = 0;
        for (fiber &f : cta.fibers) {
            done += f.done;
            f.waits_at = SIM_NONE;
        }
        if (done == cta.fibers.size()) {
            return;
        }
        if (done != 0) {
            die("some threads have ended, the others wait at a barrier");
        }
    }
}

void land(const copy &c) {
    memcpy(simulated_shared(c.to, c.count), c.bytes, c.count);
}

} // namespace

void simulated_launch(simulated_grid grid, simulated_manner manner, void (*kernel)(const void *arg),
    const void *arg) {
    cta.grid = grid;
    cta.manner = manner;
    cta.kernel = kernel;
    cta.arg = arg;
    cta.fibers.resize(grid.threads);
    for (cta.block[1] = 0; cta.block[1] < grid.y; cta.block[1]++) {
        for (cta.block[0] = 0; cta.block[0] < grid.x; cta.block[0]++) {
            run_cta();
        }
    }
}

uint32_t simulated_thread(void) {
    return cta.current;
}
uint32_t simulated_block(int dimension) {
    return cta.block[dimension];
}
uint32_t simulated_grid_x(void) {
    return cta.grid.x;
}

char *simulated_shared(uint32_t offset, uint32_t bytes) {
    (void)bytes;
    if (offset >= cta.shared.size()) {
        die("shared memory is smaller than that");
    }
    return (char *)cta.shared.data() + offset;
}

void simulated_meet(simulated_op op, simulated_exchange *exchange) {
    fiber &self = cta.fibers[cta.current];
    self.waits_at = op;
    self.exchange = exchange;
    swapcontext(&self.context, &cta.scheduler);
}

/* What the copy reads is read now: nothing writes it meanwhile. */
void simulated_copy(uint32_t to, const void *from, uint32_t bytes, bool valid) {
    copy c = {to, {}, bytes};
    if (to % bytes != 0 || (uintptr_t)from % bytes != 0) {
        die("a copy that is not aligned");
    }
    simulated_check_read(from, bytes);
    if (valid) {
        memcpy(c.bytes, from, bytes);
    }
    if (cta.manner.late_copies) {
        cta.fibers[cta.current].issued.push_back(c);
    } else {
        land(c);
    }
}

void simulated_copy_commit(void) {
    fiber &self = cta.fibers[cta.current];
    self.committed.push_back(self.issued);
    self.issued.clear();
}

void simulated_copy_wait(uint32_t groups_left) {
    fiber &self = cta.fibers[cta.current];
    while (self.committed.size() > groups_left) {
        for (const copy &c : self.committed.front()) {
            land(c);
        }
        self.committed.pop_front();
    }
}

void simulated_readable(const void *base, size_t bytes) {
    readable[(uintptr_t)base] = bytes;
}
void simulated_forget_readable(void) {
    readable.clear();
}

void simulated_check_read(const void *from, size_t bytes) {
    const uintptr_t at = (uintptr_t)from;
    auto after = readable.upper_bound(at);
    if (after == readable.begin()) {
        die("reads outside of everything");
    }
    --after;
    if (at + bytes > after->first + after->second) {
        die("reads outside of everything");
    }
}
