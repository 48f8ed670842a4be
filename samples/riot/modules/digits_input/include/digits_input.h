/* SPDX-License-Identifier: Apache-2.0 */
/* What both samples do with a plan: read ten built-in images of handwritten digits. */
#ifndef DIGITS_INPUT_H
#define DIGITS_INPUT_H

/* Prints one line for each; returns how many were read as what they are, or the error of the run that failed. */
int digits_read_all(void);

#endif
