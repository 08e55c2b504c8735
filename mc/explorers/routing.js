// The routing explorer by itself.

export default family("routing", ["token", "variant"], routing);
