/* What the C function of an operator is told of an argument, and tells of what it wants allocated. */
#ifndef GRISTMILL_OPERAND_1
#define GRISTMILL_OPERAND_1

#include "types.h"

#define GRISTMILL_MAX_DIMENSIONS 8

typedef struct gristmill_operand {
    void *data;
    int32_t dtype; /* enum gristmill_element; GRISTMILL_NONE: no tensor, or one that is absent */
    int32_t rank;
    int64_t sizes[GRISTMILL_MAX_DIMENSIONS], strides[GRISTMILL_MAX_DIMENSIONS]; /* in elements */
    int64_t integer;  /* of an integer or a bool */
    double number;    /* of a float */
    const char *text; /* of a string */
} gristmill_operand;

/* What a call is to launch, and what that needs: after the operands of the arguments come those of
   the outputs, then those of the workspace, to be allocated at multiples of 16 bytes. */
typedef struct gristmill_op_plan {
    int32_t row, outputs, workspaces;
} gristmill_op_plan;

#endif
